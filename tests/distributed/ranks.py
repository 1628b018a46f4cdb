"""Real groups of ranks for tests: torchrun over gloo on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

SMALL = (
    "dataset.limit=199", "dataset.eval_limit=30", "trainer.max_seq_len=128", "trainer.num_epochs=2", "trainer.lr=3e-3",
    "trainer.warmup_steps=3", "trainer.eval_every=4", "trainer.save_every=null", "trainer.num_answers=0", "trainer.num_samples=3",
    "trainer.precision=fp32", "trainer.log_every=1",
)  # fmt: skip
"""199 rows of the quiz: no global batch divides them."""


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    paths = [str(HERE), str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "CI": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def torchrun(
    ranks: int, *words: str, timeout: float = 400, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node RANKS -m …`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout, cwd=cwd)


def run_cases(ranks: int, cases: Mapping[str, Sequence[str]], folder: Path) -> None:
    """Runs experiments one after another in one group of ranks; run folder -> overrides."""
    file = folder / f"cases-{ranks}.json"
    file.write_text(json.dumps({name: list(words) for name, words in cases.items()}))
    done = torchrun(ranks, "-m", "cases_worker", str(file))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def rows(run: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def facts(run: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(run) / "run.json").read_text())
    return found


def curve(run: str | Path) -> list[tuple[int, float, float | None]]:
    """(step, loss, grad norm) of training rows, and (step, held-out loss, None)."""
    return [
        (row["step"], row["loss"], row["grad_norm"]) if "loss" in row else (row["step"], row["eval_loss"], None)
        for row in rows(run)
    ]
