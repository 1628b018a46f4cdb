"""What a sweep says at its end."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from dumbo.outputs.console import Console
from dumbo.sweep.ledger import Row
from dumbo.sweep.told import say_end


@pytest.mark.parametrize(
    ("results", "direction", "said"),
    [
        ([2.0, 1.5, 1.7], "minimize", "b eval_loss 1.5000"),
        ([2.0, 1.5, 1.7], "maximize", "a eval_loss 2.0000"),
        ([1.95731, 1.95734, 2.1], "minimize", "a eval_loss 1.9573 (no better than b, to these digits)"),
        ([1.5, None, 1.5], "minimize", "a eval_loss 1.5000 (no better than c, to these digits)"),
    ],
)
def test_the_best_job_and_those_that_are_as_good(results: list[float | None], direction: str, said: str) -> None:
    rows = [
        Row(number=number, name="abc"[number], state="done", result=result) for number, result in enumerate(results)
    ]
    out = io.StringIO()
    assert say_end(Console(out), Path("sweep"), rows, "eval_loss", direction)
    assert " ".join(out.getvalue().split()) == f"best {said}"
