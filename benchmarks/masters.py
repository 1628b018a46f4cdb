"""Whether bf16 weights with float32 masters learn as float32 weights do: runs from one trained model, on real text.

    python -m benchmarks.masters --data gsm8k/train.jsonl --tokenizer FOLDER --out benchmarks/results/NAME.json

SmolLM2-135M's shape. Random weights are trained first (lr 1e-3): from there two runs of the same batches part by little,
so that a difference of 0.5% can be seen. Then three runs (lr 1e-4), side by side, all else being equal:

    float32    float32 weights, bf16 arithmetic under autocast
    again      the same once more: how far two runs of one kind part
    masters    bf16 weights, float32 masters (`trainer.master_weights=true`)

Compared are held-out losses over all held-out documents, and the mean training loss of every tenth of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.record import Record
from benchmarks.scaling import SHAPES, TINY, make_model

WAYS: dict[str, list[str]] = {"float32": [], "again": [], "masters": ["trainer.master_weights=true"]}
GOAL = 0.005
"""Relative difference that counts as equal."""


def command(model: Path, run: Path, asked: argparse.Namespace, *words: str) -> list[str]:
    """What one would type."""
    return [sys.executable, "-m", "dumbo", "model=pretrained", f"model.path={model}", "dataset=files",
            f"dataset.path={asked.data.resolve()}", "dataset.eval_fraction=0.05", "launch=single",
            f"trainer.max_seq_len={128 if asked.tiny else 1024}", "trainer.micro_batch_size=16", "trainer.global_batch_size=16",
            f"trainer.max_steps={asked.steps}", "trainer.num_epochs=100", "trainer.num_answers=0", "trainer.num_samples=0",
            f"trainer.eval_every={max(asked.steps // 10, 1)}", "trainer.save_every=null", "trainer.log_every=1", "audit.mode=warn",
            "trainer.precision=bf16",
            f"run_dir={run}", *(["dataset.limit=200"] if asked.tiny else []), *words]  # fmt: skip


def read(run: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    part = max(len(losses) // 10, 1)
    return {
        "held_out": {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row},
        "training": [round(statistics.mean(losses[at : at + part]), 5) for at in range(0, len(losses), part)],
        "losses": [round(loss, 5) for loss in losses],
    }


def compared(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """The largest relative differences."""
    held = [abs(other["held_out"][step] / loss - 1) for step, loss in one["held_out"].items()]
    training = [abs(b / a - 1) for a, b in zip(one["training"], other["training"], strict=True)]
    return {"held_out_last": held[-1], "held_out_largest": max(held), "training_largest": max(training), "goal": GOAL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="rows to train on")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with SmolLM2's tokenizer")
    parser.add_argument("--steps", type=int, default=300, help="of each of the four runs")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--tiny", action="store_true", help="a small shape, to try the script")
    asked = parser.parse_args()
    record = Record(asked.out.stem, "held-out and training loss of float32 weights and of bf16 weights with float32 masters, "
                    "SmolLM2-135M's shape, from one trained model", asked.out.parent)  # fmt: skip
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        own = {**os.environ, "DUMBO_CACHE": str(folder / "cache")}
        make_model(TINY if asked.tiny else SHAPES["135m"], asked.tokenizer.resolve(), folder / "model")
        subprocess.run(command(folder / "model", folder / "first", asked, "trainer.lr=1e-3"), env=own, check=True)
        started = [
            subprocess.Popen(
                command(folder / "first" / "model", folder / way, asked, "trainer.lr=1e-4", *words), env=own
            )
            for way, words in WAYS.items()
        ]
        codes = [process.wait() for process in started]
        assert not any(codes), "a run failed"
        found = {way: read(folder / way) for way in WAYS}
        record.facts |= {
            "first": read(folder / "first")["held_out"],
            **found,
            "apart": {way: compared(found["float32"], found[way]) for way in WAYS if way != "float32"},
        }
    print(record.facts["apart"])
    print(record.write())


if __name__ == "__main__":
    main()
