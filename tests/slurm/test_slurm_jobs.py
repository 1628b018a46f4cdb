"""Jobs in a real SLURM: done, failed, told to save and put back. All three run at once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from processes import curve, steps_logged
from watched import Watched, facts_of

SMALL = (
    "trainer.num_answers=0", "trainer.num_samples=0", "trainer.eval_at_start=false", "trainer.eval_every=null",
    "trainer.save_every=null", "trainer.max_seq_len=64", "dataset.limit=64", "dataset.eval_limit=8", "trainer.log_every=1",
    "verify.mode=off",
)  # fmt: skip
LONG = (*SMALL, "trainer.max_steps=60")
"""Long enough for a signal to come before its end."""


@dataclass
class Sweeps:
    """What runs at once."""

    two: Watched
    warned: Watched


@pytest.fixture(scope="module")
def sweeps(cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweeps]:
    folder = tmp_path_factory.mktemp("sweeps")
    warned = Watched(folder / "warned", *LONG, "trainer.lr=1e-3")
    two = Watched(folder / "two", *LONG, "trainer.lr=1e-3,-1")
    run = warned.folder / "000"
    try:
        warned.until(lambda: steps_logged(run) >= 3)
        subprocess.run(["scancel", "--signal=USR2", warned.job()], check=True)  # as the time limit does
        yield Sweeps(two, warned)
    finally:
        for one in (two, warned):
            one.process.kill()
            one.process.wait()


def test_done_and_failed(sweeps: Sweeps) -> None:
    code = sweeps.two.wait()
    done, failed = sweeps.two.rows()
    assert code == 1, sweeps.two.said + sweeps.two.logs()
    assert (done["state"], done["exit_code"], done["attempt"]) == ("done", 0, 1)
    facts = facts_of(sweeps.two.run(0))
    assert facts["status"] == "finished"
    assert done["result"] == facts["metrics"]["eval_loss"]
    assert done["config_hash"] == facts["config_hash"]
    assert sweeps.two.run(0).joinpath("model").is_dir()
    assert (failed["state"], failed["exit_code"]) == ("failed", 2)
    assert "trainer.lr" in failed["error"]
    assert failed["error"].splitlines()[-1] in sweeps.two.said


def test_warned_saved_put_back_and_gone_on_with_exactly(sweeps: Sweeps) -> None:
    assert sweeps.warned.wait() == 0, sweeps.warned.said + sweeps.warned.logs()
    (row,) = sweeps.warned.rows()
    assert (row["state"], row["attempt"]) == ("done", 2)
    assert "000 is running, slurm" in sweeps.warned.said
    assert "(attempt 2)" in sweeps.warned.said
    assert "Back into the queue: preempted" in sweeps.warned.logs()
    run = sweeps.warned.run(0)
    assert "resume    from step-" in (sweeps.warned.folder / f"{run.name}.log").read_text()
    assert len(curve(run)) == 61, "60 steps and the held-out loss"
    assert curve(run) == curve(sweeps.two.run(0)), "the one that nothing interrupted"
