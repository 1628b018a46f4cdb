"""How long training stands still for a checkpoint: written while it waits, and beside it.

    python -m benchmarks.saving --data gsm8k/train.jsonl --tokenizer FOLDER --out benchmarks/results/NAME.json

The same run twice (SmolLM2-135M's shape, random weights, full fine-tuning: 1.6 GB a checkpoint), with
`trainer.async_save` false and true, every step and every checkpoint real. On a GPU of its own for each where there are
two, else one after the other.

    first_stall_s      how long training stood still for the first checkpoint, which allocates the memory that is copied to
    stall_s            the longest time for a later one
    written_s          how long writing the last checkpoint took; of the run that writes beside training, the last one written so
                       (the one at its end is not)
    step_ms            median of steps during which nothing was being written (the first half of each interval is left out)
    step_ms_writing    median of the two steps after a checkpoint had begun
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

from benchmarks.scaling import SHAPES, TINY, make_model


def command(beside: bool, folder: Path, data: Path, pack: int, packs: int, every: int, steps: int) -> list[str]:
    """What one would type."""
    return [sys.executable, "-m", "dumbo", "model=pretrained", f"model.path={folder / 'model'}", "dataset=files",
            f"dataset.path={data}", "dataset.eval_fraction=0.02", "launch=single", f"trainer.max_seq_len={pack}",
            f"trainer.micro_batch_size={packs}", f"trainer.global_batch_size={packs}", f"trainer.max_steps={steps}", "trainer.lr=1e-5",
            "trainer.num_answers=0", "trainer.num_samples=0", "trainer.eval_every=null", "trainer.eval_at_start=false",
            f"trainer.save_every={every}", "trainer.save_total_limit=1", "verify.mode=off",
            f"trainer.async_save={str(beside).lower()}", f"run_dir={folder / str(beside)}"]  # fmt: skip


def read(run: Path, beside: bool, every: int, steps: int) -> dict[str, Any]:
    """The numbers of a run, from what it left."""
    facts = json.loads((run / "run.json").read_text())
    rows = [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
    by_step = {row["step"]: row["step_ms"] for row in rows}
    saved = range(every, steps - 1, every)
    return {
        "first_stall_s": facts["save_stalls"][0],
        "stall_s": max(facts["save_stalls"][1:], default=None),
        "stalls_s": facts["save_stalls"],
        "written_s": round(facts["metrics"]["save_seconds"] - (facts["save_stalls"][-1] if beside else 0.0), 3),
        "step_ms": statistics.median(by_step[step] for start in saved for step in range(start - every // 2, start)),
        "step_ms_writing": statistics.median(by_step[start + more] for start in saved for more in (1, 2)),
        "loss_last": rows[-1]["loss"],
        "seconds": facts["metrics"]["seconds"],
        "cuda_graphs": facts.get("cuda_graphs"),
        "hardware": facts["hardware"],
        "versions": facts["versions"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="rows to train on")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with SmolLM2's tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--folder", type=Path, help="the disk that is written to")
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints: longer than one is written")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--tiny", action="store_true", help="a small shape, to try the script")
    asked = parser.parse_args()
    import torch

    gpus = torch.cuda.device_count()
    with tempfile.TemporaryDirectory(dir=asked.folder) as made:
        folder = Path(made)
        make_model(TINY if asked.tiny else SHAPES["135m"], asked.tokenizer.resolve(), folder / "model")
        started = []
        for number, beside in enumerate((False, True)):
            own = {"CUDA_VISIBLE_DEVICES": str(number % gpus)} if gpus else {}
            pack, packs = (512, 1) if asked.tiny else (2048, 8)
            words = command(beside, folder, asked.data.resolve(), pack, packs, asked.every, asked.steps)
            started.append(subprocess.Popen(words, env={**os.environ, **own}))
            if gpus < 2:
                started[-1].wait()
        codes = [process.wait() for process in started]
        assert not any(codes), "a run failed"
        results = {
            name: read(folder / str(beside), beside, asked.every, asked.steps)
            for name, beside in (("waiting", False), ("beside", True))
        }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(results, indent=1) + "\n")
    for name, result in results.items():
        print(f"{name:8} stall {result['first_stall_s']:.3f} s, later {result['stall_s']:.3f} s  "
              f"written in {result['written_s']:.3f} s  step {result['step_ms']:.1f} ms, "
              f"{result['step_ms_writing']:.1f} ms while writing  loss {result['loss_last']:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
