"""Liger's fused loss without a GPU: Triton's interpreter runs its kernel on the CPU, in a process of its own.

(Its other kernels do not run there; tests/gpu has them all.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lacking import needs

needs("liger_kernel", "pip install liger-kernel")
needs("triton", "pip install triton")

CHILD = """
import json, sys
import dumbo.cli
from dumbo.patch.liger import Liger

short = ["dataset.limit=60", "dataset.eval_limit=4", "trainer.max_steps=1", "trainer.max_seq_len=64", "trainer.num_samples=0",
         "trainer.num_answers=0", "trainer.warmup_steps=0"]
liger = ["patch=[liger]", "patch.liger.rms_norm=false", "patch.liger.rope=false", "patch.liger.swiglu=false"]
codes = [dumbo.cli.main([*short, "run_dir=plain"])]
Liger.unavailable = lambda self: None
from liger_kernel.transformers.model import llama

right, called = llama.LigerForCausalLMLoss, []
def counted(*args, **kwargs):
    called.append(True)
    return right(*args, **kwargs)
llama.LigerForCausalLMLoss = counted
codes.append(dumbo.cli.main([*short, *liger, "run_dir=right"]))
llama.LigerForCausalLMLoss = lambda *args, num_items_in_batch=None, **kwargs: right(*args, **kwargs)
codes.append(dumbo.cli.main([*short, *liger, "run_dir=wrong"]))
print(json.dumps({"codes": codes, "called": len(called)}))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object], str]:
    """A run without Liger, one with it, and one whose fused loss forgets the count of trained tokens."""
    folder = tmp_path_factory.mktemp("liger")
    ended = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=folder,
        env={**os.environ, "TRITON_INTERPRET": "1", "CI": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder, json.loads(ended.stdout.strip().splitlines()[-1]), ended.stdout + ended.stderr


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_proof_sees_the_fused_loss(done: tuple[Path, dict[str, object], str]) -> None:
    _, found, said = done
    assert found["codes"] == [0, 0, 4], said
    assert "accumulation 1 = 2 to " in said
    assert "Gradient accumulation changes the numbers: loss " in said


def test_losses_with_it_are_those_without_in_training_and_evaluation(done: tuple[Path, dict[str, object], str]) -> None:
    folder, found, _ = done
    plain, fused = metrics(folder / "plain"), metrics(folder / "right")
    assert [row["eval_loss"] for row in fused if "eval_loss" in row] == pytest.approx(
        [row["eval_loss"] for row in plain if "eval_loss" in row], rel=1e-5
    )
    pairs = [(a, b) for a, b in zip(fused, plain, strict=True) if "loss" in a]
    assert len(pairs) == 1
    for key in ("loss", "grad_norm"):
        assert pairs[0][0][key] == pytest.approx(pairs[0][1][key], rel=1e-4)
    # the proof's three passes, one training step, and two evaluations of at least a batch each: none went around it
    assert int(str(found["called"])) >= 3 + 1 + 2
