"""Real searches: a trial that learns, one that is stopped early, one that fails; killed and gone on with."""

from __future__ import annotations

import json
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from lacking import needs
from processes import Command, curve, facts_of, steps_logged
from sweeps import fork_the_worker

from dumbo.sweep import pool
from dumbo.sweep.folder import is_locked
from dumbo.sweep.ledger import Ledger

needs("optuna", "pip install 'dumbo[search]'")
import optuna  # noqa: E402
from optuna.storages.journal import JournalFileBackend  # noqa: E402

SMALL = (
    "-m", "hydra/sweeper=optuna", "sweep_dir=sweep", "model=tiny", "dataset.limit=16", "trainer.num_answers=0",
    "trainer.num_samples=0", "trainer.max_seq_len=64", "trainer.packing=false", "trainer.global_batch_size=4",
    "trainer.eval_at_start=false", "trainer.warmup_steps=2", "trainer.save_every=null", "verify.mode=off",
)  # fmt: skip


def looking_often() -> None:
    """Prelude: the losses of jobs are looked at ten times a second."""
    fork_the_worker()
    pool.LOOK = 0.0


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "optuna.jsonl")))
    return optuna.load_study(study_name="search", storage=storage).trials


def test_one_learns_one_is_stopped_one_fails(tmp_path: Path) -> None:
    """Of three learning rates 3e-3 comes first (seed 3), `1e-9` learns nothing, `fast` is none."""
    command = Command(
        tmp_path, *SMALL, "trainer.lr=3e-3,1e-9,fast", "trainer.max_steps=120", "trainer.eval_every=10",
        "sweep.search.num_trials=9", "sweep.search.prune_after_trials=1", "sweep.search.seed=3", "sweep.retries=1",
        prelude=looking_often,
    )  # fmt: skip
    assert command.wait(300) == 1, command.said()
    folder, said = tmp_path / "sweep", command.said()
    rows = {row.overrides[0].partition("=")[2]: row for row in Ledger.open(folder)}
    assert {value: row.state for value, row in rows.items()} == {"0.003": "done", "1e-09": "pruned", "fast": "failed"}
    assert rows["0.003"].number < rows["1e-09"].number, "the seed's order"
    assert {row.attempt for row in rows.values()} == {1}
    assert "trainer.lr must be a number, got the text 'fast'" in (rows["fast"].error or "")
    stopped = folder / rows["1e-09"].name
    assert facts_of(stopped)["status"] == "preempted"
    assert any(stopped.glob("checkpoints/step-*")), "it saved before it ended"
    assert steps_logged(stopped) < 120
    found = {trial.params["trainer.lr"]: trial for trial in trials(folder)}
    assert {value: trial.state.name for value, trial in found.items()} == {
        "0.003": "COMPLETE", "1e-09": "PRUNED", "fast": "FAIL",
    }  # fmt: skip
    metrics = [json.loads(line) for line in (folder / rows["0.003"].name / "metrics.jsonl").read_text().splitlines()]
    evaluated = {row["step"]: row["eval_loss"] for row in metrics if "eval_loss" in row}
    assert found["0.003"].value == facts_of(folder / rows["0.003"].name)["metrics"]["eval_loss"]
    seen = found["0.003"].intermediate_values
    assert seen == {step: evaluated[step] for step in seen}
    assert len(seen) > 5
    assert "3 of 3 trials: 1 done, 1 failed, 1 pruned" in said
    assert "values    trainer.lr=0.003" in said


# ---- killed -----------------------------------------------------------------------------------------------------------

TRIALS, STEPS = 4, 12
WORDS = (
    *SMALL, "trainer.lr=tag(log,interval(1e-4,1e-2))", "trainer.seed=interval(1,9)", f"trainer.max_steps={STEPS}",
    f"sweep.search.num_trials={TRIALS}", "trainer.eval_every=4", "sweep.search.pruner=none",
    "sweep.search.sampler=random", "sweep.cpu_slots=2",
)  # fmt: skip


def killed_again_and_again(folder: Path, kills: int, seed: int) -> Path:
    """Kills it -9 so often at random moments (a sweep that ended too soon is another one's beginning), then lets it end."""
    moments, died, place = random.Random(seed), 0, 0
    while died < kills and place < 10:
        command, path = Command(folder / str(place), *WORDS, prelude=looking_often), folder / str(place) / "sweep"
        aim, end = moments.uniform(-2, TRIALS * STEPS), time.monotonic() + 120
        while command.alive and time.monotonic() < end and sum(map(steps_logged, path.glob("0*/"))) < max(aim, 1):
            if aim < 0 and (path / "optuna.jsonl").is_file():  # before anything is trained
                break
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.3))
        with suppress(ProcessLookupError):
            command.kill(signal.SIGKILL)
        if command.wait() != 0:
            died += 1
        else:
            place += 1
    assert died == kills, "nothing was killed in time"
    command = Command(folder / str(place), *WORDS, prelude=looking_often)
    assert command.wait() == 0, command.said()
    return folder / str(place) / "sweep"


@pytest.mark.full
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments(seed: int, tmp_path: Path) -> None:
    """No trial lost, none told twice, none run twice to its end; values and losses those of a search that nothing stopped."""
    command = Command(tmp_path / "whole", *WORDS, prelude=looking_often)
    assert command.wait() == 0, command.said()
    whole = tmp_path / "whole" / "sweep"
    path = killed_again_and_again(tmp_path, 4, seed)
    rows = Ledger.open(path).rows
    assert [(row.state, row.overrides) for row in rows] == [("done", row.overrides) for row in Ledger.open(whole)]
    for row in rows:
        assert (path / f"{row.name}.log").read_text().count("\nresult ") <= 1, "run twice to its end"
        assert curve(path / row.name) == curve(whole / row.name)
    complete = [trial for trial in trials(path) if trial.state.name == "COMPLETE"]
    assert {trial.user_attrs["job"]: trial.value for trial in complete} == {row.number: row.result for row in rows}
    assert len(complete) == TRIALS
    assert {trial.state.name for trial in trials(path)} <= {"COMPLETE", "FAIL"}, "FAIL: asked for as the kill came"
    for trial in complete:
        assert list(trial.intermediate_values) == sorted(trial.intermediate_values)
    assert not is_locked(path)
