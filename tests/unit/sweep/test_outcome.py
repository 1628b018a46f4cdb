"""How a job ended: run.json decides, then the exit code and what was asked of it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from dumbo.sweep.ledger import Row
from dumbo.sweep.outcome import ended, may_be_tried_again, result_of

ROW = Row(number=0, name="000", state="running", attempt=1, seconds=2.0, config_hash="old")


def end(folder: Path, status: str | None, code: int | None, asked: Any = None, said: str = "", **facts: Any) -> Row:
    if status is not None:
        (folder / "run.json").write_text(json.dumps({"status": status, **facts}))
    changes = ended(ROW, folder, "eval_loss", code=code, asked=asked, seconds=1.5, said=said)
    return Row(**{**vars(ROW), **changes})


@pytest.mark.parametrize(
    ("status", "code", "asked", "state", "again"),
    [
        ("finished", 0, None, "done", False),
        ("finished", -6, None, "done", False),  # it died on its way out
        ("finished", 143, "prune", "done", False),
        ("finished", None, None, "done", False),  # nobody waited for it
        ("failed", 1, None, "failed", True),
        ("running", -9, None, "failed", True),
        ("running", 1, None, "failed", True),
        (None, 0, None, "failed", False),  # it ended well, and left nothing
        ("failed", 2, None, "failed", False),
        ("failed", 3, None, "failed", False),
        ("failed", 4, None, "failed", False),
        ("preempted", 143, None, "interrupted", True),  # somebody stopped that job alone
        ("preempted", 130, "stop", "interrupted", True),
        (None, -15, "stop", "interrupted", True),
        ("running", None, None, "interrupted", True),
        ("preempted", 0, None, "interrupted", False),  # trainer.max_time
        ("preempted", 143, "prune", "pruned", False),
    ],
)
def test_states(
    status: str | None, code: int | None, asked: str | None, state: str, again: bool, tmp_path: Path
) -> None:
    row = end(tmp_path, status, code, asked)
    assert row.state == state
    assert may_be_tried_again(row, code) == again
    assert row.seconds == 3.5


def test_numbers_of_a_job_that_is_done(tmp_path: Path) -> None:
    row = end(tmp_path, "finished", 0, metrics={"eval_loss": 0.5, "steps": 3}, config_hash="new")
    assert (row.result, row.metrics["steps"], row.config_hash, row.error) == (0.5, 3, "new", None)
    assert end(tmp_path, "finished", 0, metrics={"steps": 3}).result is None
    assert end(tmp_path, "failed", 1, metrics={"eval_loss": 0.5}).metrics == {}


def test_last_words(tmp_path: Path) -> None:
    assert end(tmp_path, "failed", 1, said="a\n\nb\nc \nd\n").error == "b\nc\nd"
    assert end(tmp_path, "failed", 1, error="in run.json").error == "in run.json"
    assert end(tmp_path, "failed", 1).error == "no output"
    killed = end(tmp_path, "running", -signal.SIGKILL, said="step 3").error
    assert killed is not None
    assert killed.startswith("step 3\nended by SIGKILL")
    assert end(tmp_path, "failed", 1, said="\x1b[31mred").error == "\\e[31mred", "no control characters"
    assert len(end(tmp_path, "failed", 1, said="x" * 9999).error or "") == 1000


def test_a_broken_run_json_is_no_end_of_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    assert end(tmp_path, None, 0).state == "failed"


@pytest.mark.parametrize("value", [None, "bfloat16", True, float("nan"), float("inf"), {}])
def test_a_metric_that_is_no_number_is_no_result(value: object) -> None:
    """Of `sweep.metric=…` any of run.json's may be named; the best is told in digits."""
    assert result_of({"dtype": value}, "dtype") is None
    assert result_of({}, "dtype") is None
    assert result_of({"steps": 3}, "steps") == 3
