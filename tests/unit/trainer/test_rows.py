"""Rows that come one step late are the rows that come at once, in the same order, with the same consequences."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_runs import Run, documents, small_run, splits_of

from dumbo.trainer import measuring, saving

CLOCK = ("tokens_per_s", "step_ms", "data_wait_ms", "peak_memory_gib", "mfu")


def run_of(folder: Path, splits: Any, late: bool, change: Any = None, **options: Any) -> tuple[Run, list[str]]:
    """A run, and what happened in it in its order: a step's end, a row that was written."""
    happened: list[str] = []

    def before(session: Any) -> None:
        make, write = session._trainer, session._on_row

        def written(row: dict[str, Any]) -> None:
            happened.append(f"row {row['step']} {'eval' if 'eval_loss' in row else 'loss'}")
            write(row)

        def made(batch: Any) -> Any:
            trainer = make(batch)
            trainer.rows_late = late
            step = trainer.training_step

            def counted(*arguments: Any, **kwargs: Any) -> Any:
                happened.append(f"step {trainer.state.global_step + 1}")
                return step(*arguments, **kwargs)

            trainer.training_step = counted
            if change is not None:
                change(trainer)
            return trainer

        session._on_row, session._trainer = written, made

    return small_run(folder, splits, before=before, **options), happened


def without_clock(run: Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in run.rows]


@pytest.fixture(scope="module")
def splits(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return splits_of(tmp_path_factory.mktemp("rows"), documents(data, 60), documents(data, 6, skip=100))


@pytest.mark.parametrize("every", [1, 3])
def test_late_rows_are_the_same_rows(every: int, splits: Any, tmp_path: Path) -> None:
    """With held-out losses and checkpoints in between, which nothing is late for."""
    options: dict[str, Any] = {"max_steps": 10, "eval_every": 4, "save_every": 4, "log_every": every}
    at_once, _ = run_of(tmp_path / "once", splits, False, **options)
    late, happened = run_of(tmp_path / "late", splits, True, **options)
    wanted, found = without_clock(at_once), without_clock(late)
    assert [list(row) for row in found] == [list(row) for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-6)  # a late loss was a float32 on its way
    assert happened.index("row 1 loss") > happened.index("step 2")
    assert happened.index("row 4 loss") < happened.index("row 4 eval") < happened.index("step 5")
    assert happened[-2:] == ["row 10 loss", "row 10 eval"]
    assert late.metrics["train_loss"] == pytest.approx(at_once.metrics["train_loss"], rel=1e-6)


class Mark:
    """A device's mark, on a clock of its own."""

    def __init__(self, at: float) -> None:
        self.at, self.waited = at, False

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, later: Mark) -> float:
        assert self.waited, "not measured yet"
        assert later.waited, "not measured yet"
        return 1000 * (later.at - self.at)


@pytest.mark.parametrize("every", [1, 2])
def test_a_rows_time_is_from_mark_to_mark_without_the_pauses(
    every: int, splits: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Late or at once, whoever looked when. A step takes the device 100 s; evaluating and saving 40 s, by its clock and the wall's."""
    paused = 0.0

    def pausing(work: Any) -> Any:
        def longer(*arguments: Any) -> Any:
            nonlocal paused
            paused += 40.0
            return work(*arguments)

        return longer

    def change(trainer: Any) -> None:
        first = []

        def marked_now() -> Mark:
            made = Mark(100.0 * trainer.state.global_step + paused)
            made.waited = not first  # nothing was launched before it
            first.append(made)
            return made

        trainer.marked_now = marked_now
        trainer.held_out_loss = pausing(trainer.held_out_loss)
        trainer._write_checkpoint = pausing(trainer._write_checkpoint)

    for module in (measuring, saving):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: paused))
    options: dict[str, Any] = {"max_steps": 8, "eval_every": 3, "save_every": 5, "log_every": every}
    run, _ = run_of(tmp_path / "run", splits, True, change, **options)
    rows = [row for row in run.rows if "loss" in row]
    assert rows[-1]["step"] == 8
    before = {"step": 0, "tokens": 0}
    for row in rows:
        steps, tokens = row["step"] - before["step"], row["tokens"] - before["tokens"]
        assert row["step_ms"] == pytest.approx(100_000), row["step"]
        assert row["tokens_per_s"] == pytest.approx(tokens / (100 * steps), abs=0.06)
        before = row


def test_only_what_a_pause_takes_itself_is_left_out(splits: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A device that is behind by half a second when it is to evaluate or to save: these are of the steps before."""

    def behind(device: Any) -> None:
        time.sleep(0.5)

    monkeypatch.setattr(measuring, "drain", behind)
    monkeypatch.setattr(saving, "drain", behind)
    run, _ = run_of(tmp_path / "run", splits, False, max_steps=6, eval_every=3, save_every=5, log_every=2)
    times = {row["step"]: row["step_ms"] * 2 / 1000 for row in run.rows if "loss" in row}
    assert times[4] >= 0.5  # evaluated at 3
    assert times[6] >= 0.5  # saved at 5


def test_a_skipped_step_is_told_of_in_its_own_row(splits: Any, tmp_path: Path) -> None:
    def change(trainer: Any) -> None:
        compute = trainer.compute_loss

        def broken(model: Any, inputs: Any, *arguments: Any, **kwargs: Any) -> Any:
            loss = compute(model, inputs, *arguments, **kwargs)
            return loss * np.nan if model.training and trainer.state.global_step == 4 else loss

        trainer.compute_loss = broken

    run, _ = run_of(tmp_path / "run", splits, True, change, max_steps=8)
    assert [row["step"] for row in run.rows if row.get("skipped_steps")] == [5]
    assert "step 5 is skipped" in run.said
