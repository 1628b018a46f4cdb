"""Answers of a run are computed in the arithmetic that it trains in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import documents, small_run, splits_of

from dumbo.outputs import samples


@pytest.mark.parametrize(("precision", "bf16"), [("fp32", False), ("bf16", True)])
def test_answers_are_in_the_arithmetic_of_training(
    precision: str, bf16: bool, data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    seen: list[Any] = []
    right = samples.ask

    def watched(model: Any, tokenizer: Any, asked: Any, how: Any) -> Any:
        seen.append(how.bf16)
        return right(model, tokenizer, asked, how)

    monkeypatch.setattr(samples, "ask", watched)
    splits = splits_of(tmp_path, documents(data, 20), documents(data, 4, skip=20))
    small_run(tmp_path / "run", splits, max_steps=1, num_samples=1, precision=precision, packing=False)
    assert seen[:2] == [bf16, bf16], "before and after"
