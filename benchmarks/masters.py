"""Whether a faster way learns as the plain one does: runs from one trained model, on real text.

    python -m benchmarks.masters --data gsm8k/train.jsonl --tokenizer FOLDER --out benchmarks/results/NAME.json
    python -m benchmarks.masters --work lora --data gsm8k/train.jsonl --tokenizer FOLDER --out benchmarks/results/NAME.json

SmolLM2-135M's shape. Random weights are trained first (lr 1e-3): from there two runs of the same batches part by little,
so that a difference of 0.5% can be seen. Then runs of the same batches, all else being equal. All weights (lr 1e-4, side by side):

    float32    float32 weights, bf16 arithmetic under autocast
    again      the same once more: how far two runs of one kind part
    masters    bf16 weights, float32 masters (`trainer.master_weights=true`)

LoRA, rank 16 on all linear layers (lr 1e-3):

    float32    peft's layers, float32 weights and arithmetic
    plain      peft's layers, bf16 weights, no other patch
    again      the same once more
    fused      `patch=[compile,chunked_loss,lora,fused_lora]`, bf16 weights

These run one after another: of so different speeds they are done sooner.

Compared with the first are held-out losses over all held-out documents, and the mean training loss of every tenth of the run.
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

BF16, PLAIN = "trainer.precision=bf16", ["performance=off", "patch=[lora]"]
WAYS: dict[str, dict[str, list[str]]] = {
    "full": {
        "float32": [BF16],
        "again": [BF16],
        "masters": [BF16, "trainer.master_weights=true"],
    },
    "lora": {
        "float32": ["trainer.precision=fp32", *PLAIN],
        "plain": [BF16, *PLAIN],
        "again": [BF16, *PLAIN],
        "fused": [BF16, "performance=off", "patch=[compile,chunked_loss,lora,fused_lora]"],
    },
}
RATES = {"full": "trainer.lr=1e-4", "lora": "trainer.lr=1e-3"}
WHAT = {
    "full": "float32 weights and of bf16 weights with float32 masters",
    "lora": "LoRA, of peft's layers and of fused ones",
}
GOAL = 0.005
"""Relative difference that counts as equal."""


def command(model: Path, run: Path, asked: argparse.Namespace, *words: str) -> list[str]:
    """What one would type."""
    return [sys.executable, "-m", "dumbo", "model=pretrained", f"model.path={model}", "dataset=files",
            f"dataset.path={asked.data.resolve()}", "dataset.eval_fraction=0.05", "launch=single",
            f"trainer.max_seq_len={128 if asked.tiny else 1024}", "trainer.micro_batch_size=16", "trainer.global_batch_size=16",
            f"trainer.max_steps={asked.steps}", "trainer.num_epochs=100", "trainer.num_answers=0", "trainer.num_samples=0",
            f"trainer.eval_every={max(asked.steps // 10, 1)}", "trainer.save_every=null", "trainer.log_every=1", "audit.mode=warn",
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
    parser.add_argument("--work", choices=list(WAYS), default="full")
    parser.add_argument("--steps", type=int, default=300, help="of each run")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--tiny", action="store_true", help="a small shape, to try the script")
    asked = parser.parse_args()
    ways = WAYS[asked.work]
    record = Record(asked.out.stem, f"held-out and training loss of {WHAT[asked.work]}, "
                    "SmolLM2-135M's shape, from one trained model", asked.out.parent)  # fmt: skip
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        own = {**os.environ, "DUMBO_CACHE": str(folder / "cache")}
        make_model(TINY if asked.tiny else SHAPES["135m"], asked.tokenizer.resolve(), folder / "model")
        subprocess.run(command(folder / "model", folder / "first", asked, BF16, "trainer.lr=1e-3"), env=own, check=True)
        commands = {
            way: command(folder / "first" / "model", folder / way, asked, RATES[asked.work], *words)
            for way, words in ways.items()
        }
        for together in [list(ways)] if asked.work == "full" else [[way] for way in ways]:
            started = [subprocess.Popen(commands[way], env=own) for way in together]
            codes = [process.wait() for process in started]
            assert not any(codes), "a run failed"
        found = {way: read(folder / way) for way in ways}
        record.facts |= {
            "first": read(folder / "first")["held_out"],
            **found,
            "apart": {way: compared(next(iter(found.values())), found[way]) for way in list(ways)[1:]},
        }
    print(record.facts["apart"])
    print(record.write())


if __name__ == "__main__":
    main()
