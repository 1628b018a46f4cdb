"""The end of a run on the terminal: what its numbers are of, and which question it suggests."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

from dumbo.outputs import summary
from dumbo.outputs.console import Console
from dumbo.outputs.run_dir import RunDir
from dumbo.outputs.samples import Question
from dumbo.trainer import progress


def question(asked: str, reference: str) -> Question:
    return Question((1,), asked, asked, reference, (2,), "rows.jsonl line 1")


def said(folder: Path, samples: list[tuple[Question, str, str]], **metrics: Any) -> str:
    out = io.StringIO()
    run = RunDir(path=folder, console=Console(out), started=time.time(), samples=samples, facts={"metrics": metrics})
    summary.show_end(run)
    return out.getvalue()


def test_the_suggested_question_is_one_that_was_answered_right(tmp_path: Path) -> None:
    wrong, right = question("Spell tree.", "t-r-e-e"), question("What is 1 plus 1?", "2")
    long = question("x" * 61, "1")
    assert 'chat.prompt="What is 1 plus 1?"' in said(
        tmp_path, [(long, "", "1"), (wrong, "", "t-r"), (right, "", " 2\n")]
    )
    assert 'chat.prompt="Spell tree."' in said(tmp_path, [(wrong, "", "t-r"), (right, "", "3")]), (
        "none is right: the first"
    )
    assert 'chat.prompt="…"' in said(tmp_path, [(long, "", "1")])


def test_losses_say_what_they_are_of(tmp_path: Path) -> None:
    assert f"last {progress.TRAIN_LOSS_OVER} logged" == f"last {summary.TRAIN_LOSS_OVER} logged"
    assert "loss 6.000 -> 0.500 (first, mean of the last 10 logged)" in said(
        tmp_path, [], first_loss=6.0, train_loss=0.5
    )
    assert "loss 0.500 (mean of the last 10 logged)" in said(tmp_path, [], train_loss=0.5)
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in (1, 2, 3)))
    assert "loss 0.500 (mean of the last 3 logged)" in said(tmp_path, [], train_loss=0.5)
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": null}\n{"step": 2, "eval_loss": 1.0}\n'
    )
    assert "loss 1.000 -> 0.500 (first, last)" in said(tmp_path, [], first_loss=1.0, train_loss=0.5)
