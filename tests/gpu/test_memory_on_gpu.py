"""A GPU whose memory is really full: torch's allocator is given less than the micro batch needs.

Run with `pytest -m gpu`; without a device they skip.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.gpu

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
WORDS = [
    "model=tiny", f"--config-dir={PLUGINS}", "dataset.limit=4000", "trainer.global_batch_size=128", "trainer.max_seq_len=512",
    "trainer.max_steps=4", "trainer.num_epochs=20", "trainer.num_answers=0", "trainer.num_samples=0", "trainer.eval_every=2",
    "trainer.save_every=2", "verify.mode=off", "performance=off",
]  # fmt: skip


def run(folder: Path, micro: int, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "dumbo", *WORDS, f"trainer.micro_batch_size={micro}", f"run_dir={folder}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "run.json").read_text()) | {"said": done.stdout}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "words",
    [["performance=off"], ["patch=[lora]", "trainer.precision=bf16", "performance=auto"]],
    ids=["full", "lora, all that is fast"],
)
def test_a_plan_measures(tmp_path: Path, words: list[str]) -> None:
    """The micro batch of the config beside its prediction, and larger ones up to the global batch, all of which fit here."""
    common = [word for word in WORDS if word != "performance=off"]
    command = [sys.executable, "-m", "dumbo", "plan", *common, "trainer.micro_batch_size=16", "launch=single", *words]
    command += [f"run_dir={tmp_path / 'run'}", "plan.format=json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    memory = json.loads((tmp_path / "run" / "plan.json").read_text())["memory"]
    found = memory["measured"]
    assert next(iter(found["tried"])) == "16"
    assert found["largest"] == 128
    assert found["tried"]["128"] > 2 * found["tried"]["16"]
    assert found["peak"] == found["tried"]["16"] < found["limit"]
    assert memory["peak"] / found["peak"] == pytest.approx(1, abs=0.25), "of a tiny model, whose parts are small"


@pytest.mark.parametrize(
    ("patches", "words"),
    [
        ("narrow", ["launch=single", "trainer.precision=fp32"]),
        ("narrow,compile", ["launch=single", "trainer.precision=fp32"]),
        ("narrow,compile,chunked_loss", ["launch=single", "trainer.precision=bf16", "trainer.cuda_graphs=true"]),
        ("narrow", ["launch=fsdp", "launch.num_processes=1", "trainer.precision=fp32"]),
    ],
)
def test_it_goes_on_in_less_memory(tmp_path: Path, patches: str, words: list[str]) -> None:
    words = [f"patch=[{patches}]", *words]
    tolerance = 1e-2 if "trainer.precision=bf16" in words else 1e-4
    small = run(tmp_path / "small", 8, *words, "patch.narrow.rows=1000000")
    peak = max(row["peak_memory_gib"] for row in rows(tmp_path / "small") if "loss" in row)
    graphs = "trainer.cuda_graphs=true" in words  # their pool holds a pass beside the passes as written
    most = round(1024 * (3 if graphs else 2) * peak) + 64  # a micro batch of 8 fits, one of 64 does not
    found = run(tmp_path / "run", 64, *words, f"patch.narrow.gpu_mib={most}")
    halved = found["memory_halvings"]
    assert (halved[0]["from"], halved[0]["to"]) == (64, 32)
    assert halved[0]["step"] <= (2 if graphs else 1), "where a graph's pool is what it takes, its capture is in step 2"
    assert found["batch"]["micro"] == halved[-1]["to"] >= small["batch"]["micro"]
    assert found["batch"]["micro"] * found["batch"]["accumulation"] == 128
    assert "CUDA out of memory. Tried to allocate" in found["said"]
    assert ("once more from the start" if "launch=fsdp" in words else "it goes on with") in found["said"]
    for mine, wanted in zip(rows(tmp_path / "run"), rows(tmp_path / "small"), strict=True):
        assert mine["step"] == wanted["step"]
        for key in ("loss", "eval_loss", "tokens"):
            assert mine.get(key, 0) == pytest.approx(wanted.get(key, 0), rel=tolerance)
