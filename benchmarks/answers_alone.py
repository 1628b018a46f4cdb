"""What training on answers alone saves: only tokens that bear a loss go to the head.

    python -m benchmarks.answers_alone --data gsm8k/train.jsonl --tokenizer FOLDER --out benchmarks/results/NAME.json

The same rows of real text in the same packs, trained on every token (`formatter.loss_on=all`) and on what the assistant says
(`assistant`, the default): SmolLM2-135M's shape with all weights, Llama-3.2-1B's with LoRA, random weights, in the fastest way
that `benchmarks.gpu` has. What differs is the head's work; tokens/s count every real token in both.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.one_run import seen, speed
from benchmarks.record import Record
from benchmarks.scaling import SHAPES, TINY, make_model

WORK: dict[str, tuple[str, int]] = {
    "135m": ("patch=[compile,chunked_loss,tile_attention]", 32),
    "1b": ("patch=[compile,chunked_loss,tile_attention,fused_lora,lora]", 16),
}
"""Shape -> patches, packs of 2,048 tokens a step."""
LOSS_ON = ("all", "assistant")


def words_of(shape: str, loss_on: str, folder: Path, asked: argparse.Namespace) -> list[str]:
    """What one would type, without where the run goes."""
    patches, packs = ("patch=[chunked_loss]", 4) if asked.tiny else WORK[shape]
    return ["model=pretrained", f"model.path={folder / shape}", patches, "performance=off",
            "dataset=files", f"dataset.path={asked.data}", "dataset.eval_fraction=0", f"formatter.loss_on={loss_on}",
            "launch=single", f"trainer.max_seq_len={256 if asked.tiny else 2048}", f"trainer.micro_batch_size={packs}",
            f"trainer.global_batch_size={packs}", f"trainer.max_steps={asked.steps}", "trainer.num_epochs=100", "trainer.lr=1e-5",
            "trainer.warmup_steps=0", "trainer.num_answers=0", "trainer.num_samples=0", "trainer.eval_every=null",
            "trainer.save_every=null", "trainer.log_every=2",
            *(["dataset.limit=200", "audit.mode=warn"] if asked.tiny else [])]  # fmt: skip


def measured(shape: str, loss_on: str, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Runs it, and reads its speed, how many of its tokens bear a loss, and the most memory."""
    words, run = words_of(shape, loss_on, folder, asked), folder / f"{shape}-{loss_on}"
    seen([sys.executable, "-m", "dumbo", *words, f"run_dir={run}"])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = [row for row in rows if "loss" in row]
    facts = json.loads((run / "run.json").read_text())
    return {
        "shape": shape,
        "loss_on": loss_on,
        "command": " ".join(["python -m dumbo", *words])
        .replace(str(folder), "FOLDER")
        .replace(str(asked.data), asked.data.name),
        **speed(training, asked.warmup),
        "losses": [round(row["loss"], 4) for row in training],
        "peak_memory_gib": training[-1]["peak_memory_gib"],
        **{key: facts["data"][key] for key in ("rows", "trained_share")},
        **{key: facts.get(key) for key in ("patches", "packing", "cuda_graphs")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="rows to train on")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with SmolLM2's tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--folder", type=Path, help="where models and runs lie meanwhile; a disk in memory is quickest")
    parser.add_argument("--shapes", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="a small shape in both places, to try the script")
    asked = parser.parse_args()
    record = Record(
        asked.out.stem, "tokens/s where every token is trained and where answers alone are", asked.out.parent
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=asked.folder) as made:
        folder = Path(made)
        os.environ["DUMBO_CACHE"] = str(folder / "cache")
        for shape in asked.shapes:
            make_model(TINY if asked.tiny else SHAPES[shape], asked.tokenizer.resolve(), folder / shape)
            rows += [measured(shape, loss_on, folder, asked) for loss_on in LOSS_ON]
            gain = rows[-1]["tokens_per_s"] / rows[-2]["tokens_per_s"]
            print(
                f"{shape}: {rows[-2]['tokens_per_s']:,.0f} and {rows[-1]['tokens_per_s']:,.0f} tokens/s, {gain:.3f} x"
            )
            record.facts = {"rows": rows}
            record.write()


if __name__ == "__main__":
    main()
