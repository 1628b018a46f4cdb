"""A search over functions that are known: what it finds, what Optuna is told, how it goes on after a kill. No run is trained."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from lacking import needs
from sweeps import leave

from dumbo.cli import main
from dumbo.command import parse
from dumbo.refuse import typed_text
from dumbo.sweep import pool
from dumbo.sweep.job import Start
from dumbo.sweep.ledger import Ledger, Row
from dumbo.sweep.table import summary

needs("optuna", "pip install 'dumbo[search]'")
import optuna  # noqa: E402
from optuna.storages.journal import JournalFileBackend  # noqa: E402

LR, DECAY = "trainer.lr=tag(log,interval(1e-5,1e-1))", "trainer.weight_decay=interval(0,1)"
SPACE = (LR, DECAY, "trainer.lr_scheduler=cosine,linear")
FOLDER = Path("sweep")


class Killed(BaseException):
    """As kill -9 ends the sweep: nothing is told any more."""


@dataclass
class Runs:
    """In the place of the pool's `Warm`: a run "trains" for as many ticks as it has losses, the last one is its result.

    Args:
        losses: values of a run (lr, weight_decay, …) -> held-out losses at steps 10, 20, …; None: the run fails.
        before: called with the number of each start.
    """

    losses: Callable[[dict[str, Any]], list[float] | None]
    before: Callable[[int], None] = lambda number: None
    starts: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    at_once: int = 0

    def __call__(self, *arguments: object) -> Runs:
        return self

    def start(self, start: Start) -> Any:
        words = parse(start.words).overrides
        values = {word.partition("=")[0].rpartition(".")[2]: word.partition("=")[2] for word in words}
        self.before(len(self.starts))
        self.starts.append(values)
        self.running += 1
        self.at_once = max(self.at_once, self.running)
        return Run(self, Path(typed_text(words, "run_dir") or ""), self.losses(values))

    def wait(self, seconds: float) -> None:
        return None

    def close(self) -> None:
        return None


class Run:
    def __init__(self, runs: Runs, folder: Path, losses: list[float] | None) -> None:
        self.runs, self.folder, self.losses, self.step, self.code = runs, folder, losses, 0, None
        leave(folder, status="running", planned_steps=10 * len(losses or [1]))

    def poll(self) -> int | None:
        if self.code is None and self.losses is None:
            self.end(1, status="failed", error="out of memory")
        elif self.code is None and self.losses is not None and self.step == len(self.losses):
            last = self.losses[-1]
            self.end(
                0, status="finished", metrics={"eval_loss": last if math.isfinite(last) else None, "steps": self.step}
            )
        elif self.code is None and self.losses is not None:
            self.step += 1
            with (self.folder / "metrics.jsonl").open("a") as file:
                row = {"step": 10 * self.step, "eval_loss": self.losses[self.step - 1]}
                file.write(json.dumps({"step": 10 * self.step, "loss": 1.0}) + "\n" + json.dumps(row) + "\n")
        return self.code

    def end(self, code: int, **facts: Any) -> None:
        self.code = code
        self.runs.running -= 1
        leave(self.folder, **facts)

    def signal(self, number: int) -> None:
        if self.code is None:
            self.end(143, status="interrupted")


def bowl(values: dict[str, Any]) -> list[float]:
    """Lowest, 0, at lr 1e-3, weight decay 0.25, linear."""
    lr, decay = float(values["lr"]), float(values["weight_decay"])
    return [(math.log10(lr) + 3) ** 2 + 8 * (decay - 0.25) ** 2 + 0.5 * (values["lr_scheduler"] == "cosine")]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    found = Runs(bowl)
    monkeypatch.setattr("dumbo.sweep.runner.Warm", found)
    monkeypatch.setattr(pool, "LOOK", -1.0)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # no machine dies here
    return found


def search(*words: str, trials: int = 6, over: tuple[str, ...] = SPACE) -> int:
    return main(["-m", "hydra/sweeper=optuna", *over, "sweep_dir=sweep", f"sweep.search.num_trials={trials}", *words])


def study() -> optuna.Study:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(FOLDER / "optuna.jsonl")))
    return optuna.load_study(study_name="search", storage=storage)


def told() -> list[tuple[str, float | None]]:
    return [(trial.state.name, trial.value) for trial in study().trials]


def rows() -> list[Row]:
    return Ledger.open(FOLDER).rows


def best() -> float:
    return min(row.result for row in rows() if row.result is not None)


# ---- what it finds ---------------------------------------------------------------------------------------------------


def test_tpe_finds_what_random_values_do_not(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, float] = {}
    for sampler in ("random", "tpe"):
        assert search(f"sweep.search.sampler={sampler}", trials=35) == 0
        assert len(rows()) == 35
        found[sampler] = best()
        shutil.rmtree(FOLDER)
    assert found["tpe"] < 0.05 < found["random"], found
    assert "35 of 35 trials: 35 done" in capsys.readouterr().out


def test_what_is_written_down(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(trials=3) == 0
    out = capsys.readouterr().out
    assert "trainer.lr: 1e-05 to 0.1 on a log scale" in out
    facts = json.loads((FOLDER / "sweep.json").read_text())
    assert (facts["sweeper"], facts["swept"]) == (
        "optuna",
        ["trainer.lr", "trainer.weight_decay", "trainer.lr_scheduler"],
    )
    assert facts["search"]["num_trials"] == 3
    for row, trial, started in zip(rows(), study().trials, runs.starts, strict=True):
        assert trial.user_attrs == {"job": row.number}
        assert trial.value == row.result == bowl(started)[-1]
        assert float(started["lr"]) == trial.params["trainer.lr"], "to the last bit"
        assert f"trainer.lr={trial.params['trainer.lr']!r}" in row.overrides
        assert row.name.startswith(f"00{row.number}-trainer.lr=")
        assert len(row.name) < 90
    lowest = min(rows(), key=lambda row: row.result or 0)
    assert f"values    {' '.join(lowest.overrides)}" in out


def test_a_metric_and_a_direction_of_ones_own(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("sweep.metric=steps", "sweep.direction=maximize", trials=2) == 0
    assert told() == [("COMPLETE", 1.0)] * 2
    assert "none was stopped early" in capsys.readouterr().out
    assert search(trials=3) == 2
    assert "sweep.direction=maximize" in capsys.readouterr().err
    shutil.rmtree(FOLDER)
    assert search("sweep.metric=exact_match") == 2
    said = capsys.readouterr()
    assert len(rows()) == 1, "no more are begun for nothing"
    assert "has no such metric" in said.err
    assert "eval_loss, steps" in said.err
    assert search(trials=2) == 0, "what is done is told by the right metric"
    assert [state for state, _ in told()] == ["COMPLETE"] * 2
    assert len(runs.starts) == 4
    assert search("sweep.metric=steps") == 2
    assert "was begun with sweep.metric=eval_loss" in capsys.readouterr().err


def test_values_are_not_tried_twice_where_they_can_be_counted(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.losses = lambda values: [float(values["seed"])]
    assert search(over=("trainer.seed=range(4)",), trials=30) == 0
    assert sorted(started["seed"] for started in runs.starts) == ["0", "1", "2", "3"]
    assert "4 of 4 trials: 4 done" in capsys.readouterr().out
    assert search(over=("trainer.seed=range(6)",), trials=30) == 0, "the ends of a range may move"
    assert sorted(started["seed"] for started in runs.starts) == ["0", "1", "2", "3", "4", "5"]


def test_as_many_at_once_as_there_are_slots(runs: Runs) -> None:
    runs.losses = lambda values: [*([5.0] * 3), *bowl(values)]
    assert search("sweep.cpu_slots=3", "sweep.search.pruner=none", trials=8) == 0
    assert runs.at_once == 3
    assert [row.state for row in rows()] == ["done"] * 8


# ---- trials that fail, trials that are stopped -------------------------------------------------------------------------


def test_a_trial_that_fails_does_not_end_the_search(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.losses = lambda values: None if values["lr_scheduler"] == "linear" else bowl(values)
    assert search("sweep.retries=0", trials=6) == 1
    out = capsys.readouterr().out
    states = [row.state for row in rows()]
    assert {*states} == {"done", "failed"}
    assert [state for state, _ in told()] == [{"done": "COMPLETE", "failed": "FAIL"}[state] for state in states]
    assert "go on from their checkpoints" not in out, "what failed is not tried again"
    assert search("sweep.retries=0", trials=6) == 1
    assert len(runs.starts) == 6


def test_a_loss_that_is_none_is_a_failure(runs: Runs) -> None:
    runs.losses = lambda values: [math.nan]
    assert search(trials=1) == 0
    assert told() == [("FAIL", None)]


@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband"])
def test_bad_trials_are_stopped_early(pruner: str, runs: Runs) -> None:
    def falling(values: dict[str, Any]) -> list[float]:
        end = abs(math.log10(float(values["lr"])) + 3)
        return [end + 1 / step for step in range(1, 10)]

    runs.losses = falling
    words = (f"sweep.search.pruner={pruner}", "sweep.search.prune_after_trials=3", "sweep.search.prune_after_step=20")
    assert search(*words, over=(LR,), trials=16) == 0
    found, trials = rows(), study().trials
    pruned = [row for row in found if row.state == "pruned"]
    assert pruned
    assert [trial.state.name for trial in trials] == [
        "PRUNED" if row.state == "pruned" else "COMPLETE" for row in found
    ]
    ends = {
        row.number: falling({"lr": trial.params["trainer.lr"]})[-1] for row, trial in zip(found, trials, strict=True)
    }
    assert min(ends, key=ends.__getitem__) not in {row.number for row in pruned}, "not the best"
    for row, trial in zip(found, trials, strict=True):
        steps = [step for step in trial.intermediate_values if step]
        assert steps == list(range(10, steps[-1] + 1, 10)), "each evaluation once, in order"
        assert steps[-1] >= 20
        assert (steps[-1] < 90) == (row.state == "pruned")
    if pruner == "median":
        assert all(row.number >= 3 for row in pruned)


def test_a_loss_that_is_none_while_training_stops_it(runs: Runs) -> None:
    runs.losses = lambda values: [1.0] * 5 if len(runs.starts) < 3 else [math.nan] * 5
    assert search("sweep.search.prune_after_trials=2", trials=4) == 0
    assert [row.state for row in rows()] == ["done", "done", "pruned", "pruned"]


def test_without_a_pruner(runs: Runs) -> None:
    runs.losses = lambda values: [float(len(runs.starts))] * 5
    assert search("sweep.search.pruner=none", trials=12) == 0
    assert {row.state for row in rows()} == {"done"}
    assert len(study().trials[3].intermediate_values) == 5


def test_how_far_it_is(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(trials=2) == 0
    assert summary(Ledger.open(FOLDER), {}, 1, 6).startswith("2 of 6 jobs done, about ")
    assert main(["sweep", "wait", "sweep"]) == 0
    runs.before = killed_at(3)
    with pytest.raises(Killed):
        search(trials=6)
    Ledger.open(FOLDER).put([replace(row, state="done") for row in rows()])  # as between two trials
    capsys.readouterr()
    assert main(["sweep", "status", "sweep"]) == 0
    assert "not running, 4 trials of 6 are begun" in capsys.readouterr().out
    assert main(["sweep", "wait", "sweep"]) == 1, "what is there is done, and two are to come"


def test_a_search_through_all_combinations_is_over(runs: Runs) -> None:
    over = ("trainer.lr=1e-3,1e-2", "trainer.weight_decay=0.25", "trainer.lr_scheduler=linear")
    assert search(trials=6, over=over) == 0
    assert len(rows()) == 2
    assert main(["sweep", "wait", "sweep"]) == 0, "of six trials that were asked for"


# ---- it goes on --------------------------------------------------------------------------------------------------------


def killed_at(start: int) -> Callable[[int], None]:
    def kill(number: int) -> None:
        if number == start:
            raise Killed

    return kill


def test_more_trials_are_added_by_the_same_command_or_by_the_folder(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(trials=3) == 0
    assert search(trials=3) == 0
    assert len(runs.starts) == 3
    assert main(["-m", "sweep_dir=sweep", "sweep.search.num_trials=5"]) == 0
    assert "3 ended already" in capsys.readouterr().out
    assert len(runs.starts) == len(rows()) == 5
    assert search("sweep.search.seed=0", trials=12) == 0
    through = [trial.params for trial in study().trials]
    shutil.rmtree(FOLDER)
    assert search(trials=12) == 0
    assert [trial.params for trial in study().trials] == through, "as in one go"


def test_a_search_that_was_killed_has_the_trials_of_one_that_was_not(runs: Runs) -> None:
    assert search(trials=14) == 0
    whole = [(row.overrides, row.name, row.result) for row in rows()]
    shutil.rmtree(FOLDER)
    runs.starts.clear()
    for start in (0, 4, 12):
        runs.before = killed_at(start)
        with pytest.raises(Killed):
            search(trials=14)
    runs.before = lambda number: None
    assert search(trials=14) == 0
    assert [(row.overrides, row.name, row.result) for row in rows()] == whole
    assert [trial.number for trial in study().trials] == list(range(14))
    assert {trial.state.name for trial in study().trials} == {"COMPLETE"}
    assert len(runs.starts) == 14, "the killed ones never began"


def test_killed_between_any_two_writes(runs: Runs) -> None:
    """Each line of the journal may be the last, or half of the last; Optuna's lock may lie there."""
    assert search(trials=3) == 0
    journal, ledger = (FOLDER / name for name in ("optuna.jsonl", "ledger.jsonl"))
    lines, last = journal.read_bytes().splitlines(keepends=True), rows()
    whole = [row.overrides for row in last]
    begin = next(n for n, line in enumerate(lines) if json.loads(line).get("user_attr") == {"job": 1}) + 1
    for cut in range(begin, len(lines) + 1):
        known = sum(json.loads(line).get("user_attr") is not None for line in lines[:cut])
        is_row_written = json.loads(lines[cut - 1]).get("user_attr") is None
        journal.write_bytes(b"".join(lines[:cut]) + (lines[cut][: len(lines[cut]) // 2] if cut < len(lines) else b""))
        ledger.unlink()
        Ledger.open(FOLDER).put(last[: known if is_row_written else known - 1])
        (FOLDER / "optuna.jsonl.lock").symlink_to(journal)
        assert search(trials=3) == 0
        assert [row.overrides for row in rows()] == whole
        trials = [one for one in study().trials if one.state.name != "FAIL"]
        assert [one.value for one in trials] == [row.result for row in last]


@pytest.mark.parametrize(("state", "wanted"), [("done", "COMPLETE"), ("pruned", "PRUNED"), ("failed", "FAIL")])
def test_an_end_that_was_not_told_is_told(state: Any, wanted: str, runs: Runs) -> None:
    runs.before = killed_at(1)
    with pytest.raises(Killed):
        search(trials=2)
    assert [row.state for row in rows()] == ["done", "running"]
    Ledger.open(FOLDER).change(1, state=state, metrics={"eval_loss": 0.5} if state == "done" else {})
    assert search(trials=2) == (1 if state == "failed" else 0)
    assert told()[1] == (wanted, 0.5 if state == "done" else None)
    assert len(runs.starts) == 1


def test_a_folder_of_another_sweep(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(trials=1) == 0
    for words, says in (
        (["trainer.lr=1e-3,1e-2"], "is a sweep of hydra/sweeper=optuna, not of hydra/sweeper=basic"),
        (["hydra/sweeper=optuna", LR], "was begun over trainer.lr, trainer.weight_decay"),
        (
            ["hydra/sweeper=optuna", LR, DECAY, "trainer.lr_scheduler=cosine,constant"],
            "over the choices cosine, linear",
        ),
        (["hydra/sweeper=optuna", "trainer.lr=interval(1e-5,1e-1)", *SPACE[1:]], "1e-05 to 0.1 (log), and is now over"),
    ):
        assert main(["-m", *words, "sweep_dir=sweep"]) == 2
        assert says in capsys.readouterr().err
    (FOLDER / "optuna.jsonl").unlink()
    assert search(trials=1) == 2
    assert "does not know" in capsys.readouterr().err
    shutil.rmtree(FOLDER)
    assert (
        main(
            [
                "-m",
                "trainer.lr=1e-3,1e-2",
                "trainer.weight_decay=0,1",
                "trainer.lr_scheduler=linear,cosine",
                "sweep_dir=sweep",
            ]
        )
        == 0
    )
    assert search(trials=1) == 2
    assert "is a sweep of hydra/sweeper=basic" in capsys.readouterr().err


def test_the_preset(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.losses = lambda values: [float(values["rank"])]
    assert main(["-m", "+experiment=search_lr_rank", "model=tiny", "sweep.search.num_trials=3"]) == 0
    (folder,) = Path("multirun_outputs").iterdir()
    assert folder.name.startswith("search_lr_rank-")
    found = Ledger.open(folder).rows
    assert len(found) == 3
    assert [word.partition("=")[0] for word in found[0].overrides] == ["trainer.lr", "patch.lora.rank"]
    assert (
        main(["-m", "+experiment=search_lr_rank", "trainer.lr=1e-3", "sweep_dir=fixed", "sweep.search.num_trials=9"])
        == 0
    )
    assert {started["lr"] for started in runs.starts[3:]} == {"1e-3"}
    assert len(runs.starts) == 3 + 5, "a key that is typed is not searched over"
