"""SmolLM2-135M's shape on one GPU through the normal command: does it train, and how fast.

    python -m benchmarks.first_gpu_runs --model FOLDER --data train.jsonl --out benchmarks/results/NAME.json

FOLDER holds SmolLM2's config.json and tokenizer; weights are random (`model.from_scratch=true`), since the speed of
a step does not depend on them. The rows are real text (GSM8K). Every row of the table is a command line that a user
could type; loss, tokens/s, MFU and peak memory are read from the run.json it leaves, tokens/s the median over the
steps after the first fifth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROWS = {
    "lora": ["patch=[liger,lora]", "trainer.lr=1e-3"],
    "full, liger": ["patch=[liger]", "trainer.lr=3e-4"],
    "full": ["patch=[]", "trainer.lr=3e-4"],
}
COMMON = ["trainer.max_seq_len=2048", "trainer.global_batch_size=8", "trainer.micro_batch_size=8", "trainer.num_answers=0",
          "trainer.num_samples=0", "trainer.eval_every=null", "trainer.save_every=null"]  # fmt: skip


def measured(name: str, words: list[str], steps: int, model: Path, data: Path, folder: Path) -> dict[str, object]:
    """Runs one row in a process of its own and reads what it left."""
    run_dir = folder / name.replace(", ", "-")
    command = [sys.executable, "-m", "dumbo", "model=pretrained", f"model.path={model}", "model.from_scratch=true",
               "dataset=files", f"dataset.path={data}", "dataset.eval_fraction=0.02", *COMMON, *words,
               f"trainer.max_steps={steps}", f"run_dir={run_dir}"]  # fmt: skip
    print("+", " ".join(command[1:]), flush=True)
    subprocess.run(command, check=True)
    facts = json.loads((run_dir / "run.json").read_text())
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    numbers = facts["metrics"]
    return {
        "row": name,
        "command": "python -m dumbo " + " ".join(word for word in command[3:] if not word.startswith("run_dir=")),
        "steps": numbers["steps"],
        "loss_first": losses[0],
        "loss_every_10": [round(loss, 4) for loss in losses[9::10]],
        "eval_loss_before": numbers.get("eval_loss_before"),
        "eval_loss_after": numbers.get("eval_loss"),
        "tokens_per_s": numbers["tokens_per_s"],
        "mfu": numbers.get("mfu"),
        "peak_memory_gib": numbers["peak_memory_gib"],
        "data_wait_ms": sorted(row["data_wait_ms"] for row in rows if "loss" in row)[len(losses) // 2],
        "step_ms": sorted(row["step_ms"] for row in rows if "loss" in row)[len(losses) // 2],
        "seconds": numbers["seconds"],
        "patches": facts["patches"],
        "packing": facts["packing"],
        "proofs": facts["proofs"],
        "hardware": facts["hardware"],
        "versions": facts["versions"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json and the tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="rows to train on")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    asked = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.rows:
            results.append(
                measured(name, ROWS[name], asked.steps, asked.model.resolve(), asked.data.resolve(), Path(folder))
            )
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            asked.out.write_text(json.dumps(results, indent=1, ensure_ascii=False, default=str) + "\n")
    for row in results:
        print(
            f"{row['row']:<14}{row['tokens_per_s']:>12,.0f} tokens/s   loss {row['loss_first']:.3f} -> {row['loss_every_10'][-1]}"
        )


if __name__ == "__main__":
    main()
