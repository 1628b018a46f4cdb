"""On two CUDA devices: what `performance` adds changes no loss under DDP and FSDP2, and `launch=auto` takes both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dumbo.options import FASTER

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs"),
]

WORDS = ("model=tiny", "trainer.max_steps=30", "trainer.precision=bf16", "trainer.lr=2e-3", "trainer.num_answers=0",
         "trainer.num_samples=0", "trainer.global_batch_size=4", "trainer.micro_batch_size=1", "trainer.eval_every=15",
         "trainer.log_every=1")  # fmt: skip


def run(folder: Path, *words: str) -> tuple[dict[str, Any], list[float]]:
    """A run's facts and losses, held-out ones too."""
    command = [sys.executable, "-m", "dumbo", *WORDS, *words, f"run_dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = [row[key] for row in rows for key in ("loss", "eval_loss") if key in row]
    return json.loads((folder / "run.json").read_text()), losses


@pytest.mark.parametrize("patch", ["", "lora"])
@pytest.mark.parametrize(("launch", "wrapper"), [("ddp", "DDP"), ("fsdp", "FSDP2")])
def test_faster_patches_change_no_loss(launch: str, wrapper: str, patch: str, tmp_path: Path) -> None:
    """30 steps on two GPUs with everything that fits there, beside one GPU with nothing (bf16: 8 bits of mantissa)."""
    faster = set(FASTER) - (set() if patch else {"fused_lora"})
    _, plain = run(tmp_path / "one", f"patch=[{patch}]", "launch=single", "performance=off")
    facts, fast = run(tmp_path / "two", f"patch=[{','.join([*patch.split(), *faster])}]", f"launch={launch}")
    assert facts["parallel"] == wrapper
    assert {name for name, said in facts["patches"].items() if said.startswith("applied")} == {*patch.split(), *faster}
    assert fast == pytest.approx(plain, rel=1e-2)
    assert plain[-1] < plain[0] - 0.3, "nothing was learned, so that nothing could differ"


def test_auto_takes_both(tmp_path: Path) -> None:
    """Both GPUs, and on each what is faster there (compiling would take longer than 30 steps)."""
    facts, _ = run(tmp_path / "auto")
    assert facts["parallel"] == "DDP"
    assert facts["batch"]["ranks"] == 2
    assert facts["performance"] == ["chunked_loss", "tile_attention"]
