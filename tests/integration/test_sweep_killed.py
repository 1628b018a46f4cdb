"""A sweep that is killed -9 at random moments and started again: no job lost, none run twice to its end, the numbers the same."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from processes import Command, curve, facts_of, steps_logged
from sweeps import fork_the_worker

from dumbo.cli import main
from dumbo.sweep.folder import is_locked
from dumbo.sweep.ledger import Ledger

JOBS, STEPS = 3, 10
WORDS = (
    "-m", "trainer.seed=" + ",".join(map(str, range(JOBS))), "sweep.cpu_slots=2", "sweep_dir=sweep", "model=tiny",
    f"trainer.max_steps={STEPS}", "trainer.save_every=3", "trainer.eval_every=null", "trainer.eval_at_start=false", "dataset.limit=16",
    "trainer.num_answers=0", "trainer.num_samples=0", "trainer.max_seq_len=64", "trainer.packing=false",
    "trainer.global_batch_size=4", "trainer.warmup_steps=2", "verify.mode=off", "trainer.lr=3e-3",
)  # fmt: skip


def sweep(folder: Path) -> Command:
    return Command(folder, *WORDS, prelude=fork_the_worker)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    command = sweep(folder)
    assert command.wait() == 0, command.said()
    logs = [log.read_text() for log in (folder / "sweep").glob("*.log")]
    assert [log.count("\nresult ") for log in logs] == [1] * JOBS, "what tells below that a job ran to its end"
    return folder / "sweep"


def far(path: Path) -> int:
    """Steps that all jobs together have logged."""
    return sum(steps_logged(run) for run in path.glob("0*/"))


def killed(folder: Path, moments: random.Random) -> bool:
    """Starts the sweep and kills it -9 at a random moment of starting, training, saving or ending; False: it ended before."""
    command, path = sweep(folder), folder / "sweep"
    aim = moments.uniform(-3, JOBS * STEPS)
    end = time.monotonic() + 120
    while command.alive and far(path) < max(aim, 1) and time.monotonic() < end:
        if aim < 0 and (path / "ledger.jsonl").is_file():  # before anything is trained
            break
        time.sleep(0.002)
    time.sleep(moments.uniform(0, 0.4))
    with suppress(ProcessLookupError):
        command.kill(signal.SIGKILL)
    return command.wait() != 0


def killed_again_and_again(folder: Path, kills: int, seed: int) -> Path:
    """Kills it so often, then lets it end. A sweep that ended too soon is another one's beginning."""
    moments, died, place = random.Random(seed), 0, 0
    while died < kills and place < 10:
        if killed(folder / str(place), moments):
            died += 1
        else:
            place += 1
    assert died == kills, "nothing was killed in time"
    command = sweep(folder / str(place))
    assert command.wait() == 0, command.said()
    return folder / str(place) / "sweep"


def assert_nothing_lost(path: Path, whole: Path) -> None:
    rows = Ledger.open(path).rows
    assert [row.state for row in rows] == ["done"] * JOBS
    assert [row.name for row in rows] == [row.name for row in Ledger.open(whole)]
    assert len((path / "ledger.jsonl").read_text().splitlines()) == JOBS
    for row in rows:
        assert facts_of(path / row.name)["status"] == "finished"
        assert (path / f"{row.name}.log").read_text().count("\nresult ") <= 1, "run twice to its end"
        assert curve(path / row.name) == curve(whole / row.name)
    assert not is_locked(path)


def test_killed_at_random_moments(whole: Path, tmp_path: Path) -> None:
    assert_nothing_lost(killed_again_and_again(tmp_path, 2, 1), whole)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(5))
def test_killed_twenty_times(whole: Path, seed: int, tmp_path: Path) -> None:
    assert_nothing_lost(killed_again_and_again(tmp_path, 4, 100 + seed), whole)


def running(folder: Path) -> list[int]:
    """Processes whose working folder is this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(entry / "cwd")) == folder and "Z" not in (entry / "stat").read_text().split(")")[1][:3]:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_killed_sweep_leaves_no_process_behind(tmp_path: Path) -> None:
    """Its worker dies with it, and its jobs save and end; whoever starts it meanwhile waits for them."""
    here = tmp_path / "here"  # where this process and the server that forks are not
    command = sweep(here)
    command.until(lambda: any((here / "sweep").glob("*/metrics.jsonl")))
    assert len(running(here)) >= 3, "sweep, worker, jobs"
    command.kill(signal.SIGKILL)
    command.wait()
    end = time.monotonic() + 300
    while left := running(here):
        assert time.monotonic() < end, left
        time.sleep(0.05)
    while is_locked(here / "sweep"):  # a process that ends lets go of its files after its name is gone
        assert time.monotonic() < end
        time.sleep(0.05)
    again = sweep(here)
    again.until(lambda: "go on from where they were" in again.said())
    again.kill(signal.SIGINT)
    assert again.wait() == 130
    said = again.said()
    assert "stopped   SIGINT: " in said
    assert "Go on: python -m dumbo -m sweep_dir=sweep" in said
    assert all(row.state != "running" for row in Ledger.open(here / "sweep"))


def test_a_job_is_the_run_by_itself(whole: Path, tmp_path: Path) -> None:
    """Forked from a warm worker, beside another job: the same numbers to the last bit."""
    words = [word for word in WORDS if not word.startswith(("-m", "trainer.seed", "sweep"))]
    command = Command(tmp_path, *words, "trainer.seed=1", "run_dir=run")
    assert command.wait() == 0, command.said()
    assert curve(tmp_path / "run") == curve(next(whole.glob("001*/")))


def test_cancel_and_wait(tmp_path: Path) -> None:
    """From another process: the jobs that run save, and the sweep can go on."""
    here = tmp_path / "here"
    command = Command(here, *WORDS, "trainer.max_steps=10000", "trainer.num_epochs=1000", prelude=fork_the_worker)
    command.until(lambda: far(here / "sweep") > 3)
    assert main(["sweep", "status", str(here / "sweep")]) == 0
    assert main(["sweep", "cancel", str(here / "sweep")]) == 0
    assert main(["sweep", "wait", str(here / "sweep")]) == 1
    assert command.wait() == 130, command.said()
    assert [row.state for row in Ledger.open(here / "sweep")] == ["interrupted", "interrupted", "waiting"]
    assert len(list((here / "sweep").glob("*/checkpoints/step-*"))) >= 2
    assert main(["sweep", "cancel", str(here / "sweep")]) == 0, "nobody runs it any more"
