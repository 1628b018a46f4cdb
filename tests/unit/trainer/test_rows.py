"""Rows that come one step late are the rows that come at once, in the same order, with the same consequences."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import Run, documents, small_run, splits_of

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


class Device:
    """A device that has a step's numbers some time after the step was launched."""

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        time.sleep(0.05)


def test_a_late_rows_time_ends_when_its_numbers_are_there(splits: Any, tmp_path: Path) -> None:
    """Right after a held-out loss too, where nothing before it was waited for."""

    def change(trainer: Any) -> None:
        send = trainer._send_for

        def sent(*arguments: Any) -> None:
            send(*arguments)
            trainer._late = replace(trainer._late, there=Device())

        trainer._send_for = sent

    run, _ = run_of(tmp_path / "run", splits, True, change, max_steps=6, eval_every=3, save_every=None)
    late = [row for row in run.rows if row["step"] in (1, 2, 4, 5) and "loss" in row]
    assert len(late) == 4
    for row in late:
        assert row["step_ms"] >= 50
        assert row["tokens_per_s"] <= run.metrics["tokens"] / 0.05


class Mark:
    """A device's mark that is there when the next step has been launched, or is waited for."""

    def __init__(self, at: float, there: bool) -> None:
        self.at, self.there, self.waited = at, there, False

    def query(self) -> bool:
        return self.there

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, later: Mark) -> float:
        assert later.waited, "not measured yet"
        return 1000 * (later.at - self.at)


def test_from_late_row_to_late_row_the_devices_clock_counts(splits: Any, tmp_path: Path) -> None:
    """Every other step's numbers are there by the time they are looked at: whoever looked has had to wait for those before."""

    def change(trainer: Any) -> None:
        send = trainer._send_for

        def sent(*arguments: Any) -> None:
            step = trainer.state.global_step
            send(*arguments)
            mark = Mark(100.0 * step, there=step % 2 == 0)
            trainer._late = replace(trainer._late, there=mark)
            trainer.interval.starts = mark

        trainer._send_for = sent

    run, _ = run_of(tmp_path / "run", splits, True, change, max_steps=8, eval_every=4, save_every=None)
    rows = {row["step"]: row for row in run.rows if "loss" in row}
    for step in (2, 3, 6, 7):
        assert rows[step]["step_ms"] == 100_000
        tokens = rows[step]["tokens"] - rows[step - 1]["tokens"]
        assert rows[step]["tokens_per_s"] == round(tokens / 100, 1)
    for step in (1, 4, 5, 8):  # before or after them something was waited for: the clock on the wall
        assert rows[step]["step_ms"] < 50_000


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
