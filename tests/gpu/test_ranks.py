"""Ranks on a real GPU: one GPU allows one rank, which is enough to see accelerate's FSDP2, its checkpoints and its bf16."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.gpu

WORDS = ("trainer.max_steps=20", "trainer.num_answers=0", "trainer.global_batch_size=4", "trainer.micro_batch_size=2",
         "trainer.save_every=8", "trainer.save_total_limit=9", "trainer.eval_every=10")  # fmt: skip


def dumbo(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dumbo", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def facts(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row.get("loss", row.get("eval_loss")) for row in rows]


@pytest.mark.parametrize("patch", ["[]", "lora"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-4), ("bf16", 1e-2)])
def test_one_sharded_rank_is_one_process(precision: str, tolerance: float, patch: str, tmp_path: Path) -> None:
    own = [*WORDS, f"trainer.precision={precision}", f"patch={patch}"]
    dumbo(*own, "launch=single", f"run_dir={tmp_path / 'one'}")
    dumbo(*own, "launch=fsdp", "launch.num_processes=1", f"run_dir={tmp_path / 'fsdp'}")
    assert facts(tmp_path / "fsdp")["parallel"] == "FSDP2"
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "one"), abs=tolerance)


def test_a_sharded_run_goes_on(tmp_path: Path) -> None:
    """From its checkpoint of step 8, sharded and in one process: the same losses."""
    import shutil

    whole = tmp_path / "whole"
    dumbo(*WORDS, "trainer.precision=fp32", "launch=fsdp", "launch.num_processes=1", f"run_dir={whole}")
    for name, words in (("sharded", ["launch=fsdp", "launch.num_processes=1"]), ("single", ["launch=single"])):
        run = tmp_path / name
        shutil.copytree(whole, run)
        for checkpoint in run.glob("checkpoints/step-*"):
            if checkpoint.name != "step-000008":
                shutil.rmtree(checkpoint)
        (run / "run.json").write_text(json.dumps(facts(run) | {"status": "running"}))
        dumbo(f"resume={run}", *words)
        assert losses(run) == pytest.approx(losses(whole), abs=2e-4)
