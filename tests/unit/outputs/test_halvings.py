"""What is said when the memory has run out for good can be typed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from dumbo.batch import Batch
from dumbo.errors import MemoryFull, RunFailed
from dumbo.outputs.console import Console
from dumbo.outputs.halvings import halve
from dumbo.outputs.run_dir import RunDir


def test_patches_that_performance_added_are_not_typed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("patch: {lora: {rank: 8}}\n")
    run = RunDir(path=tmp_path, console=Console(io.StringIO()), started=0.0)
    run.facts = {"patches": {"lora": "applied", "chunked_loss": "applied", "compile": "left out"}}
    full = MemoryFull("CUDA out of memory.", step=3, batch=Batch(8, 1, 1, 8), asked=1)
    with pytest.raises(RunFailed, match=r"'patch=\[lora,gradient_checkpointing\]'"):
        halve(run, full)
