"""The longest document that trains on one GPU, of ours and of TRL: whole rows, one a step, with gradient checkpointing.

    python -m benchmarks.longest --shapes llama1b llama8b --memory-gib 79 --out benchmarks/results/NAME.json
    python -m benchmarks.longest --small --out /tmp/smoke.json      # works on a CPU

Random weights. Each side in a process of its own, which torch gives no more than `--memory-gib` (an H100 has 79.6 GiB to
give). Two lengths are trained on, for two steps where all weights train, so that the optimizer's state is there. Their
peaks lie on a line; tried then is 5% below where it meets the limit, and 5% less as long as memory runs out. The proofs at
a run's start are left out (`verify.mode=off`), and what it would write in the end: both would take as long as the steps.

    python -m dumbo with compile, chunked_loss, tile_attention, gradient_checkpointing, and lora,fused_lora    float32 weights,
                                                                                              or bf16 under LoRA
    TRL packed ("wrapped") with Liger's kernels and gradient checkpointing (`peer_trl.py`)    the same
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.made_up import SHAPES, write_documents, write_model
from benchmarks.record import Record, nothing_held, nothing_saved

STEPS = {"full": 2, "lora": 1}
FIRST = {"tiny": (64, 128), "smollm135": (131_072, 262_144), "llama1b": (65_536, 131_072), "llama8b": (16_384, 32_768)}
"""Lengths that give the line. Below these, activations are not yet what is most at once."""
BACK = 0.95
WORK = {"tiny": "full", "smollm135": "full", "llama1b": "full", "llama8b": "lora"}
WORDS = ["formatter=text", "dataset=files", "dataset.eval_fraction=0", "trainer.num_answers=0", "trainer.num_samples=0",
         "trainer.eval_every=null", "trainer.save_every=null", "trainer.warmup_steps=0", "launch=single", "performance=off",
         "trainer.global_batch_size=1", "trainer.micro_batch_size=1", "trainer.num_epochs=9", "verify.mode=off"]  # fmt: skip


def ours(folder: Path, work: str, longest: int) -> dict[str, Any]:
    """`python -m dumbo`."""
    import dumbo

    adapters = ",lora,fused_lora" if work == "lora" else ""
    run = folder / f"run-{longest}-{time.time_ns()}"
    words = ["model=pretrained", f"model.path={folder}", f"dataset.path={folder / 'docs.jsonl'}", *WORDS,
             f"patch=[compile,chunked_loss,tile_attention,gradient_checkpointing{adapters}]", f"trainer.max_seq_len={longest}",
             f"trainer.max_steps={STEPS[work]}", f"run_dir={run}"]  # fmt: skip
    dumbo.run(words)
    rows = [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
    last = rows[-1]
    return {
        "tokens_per_s": last["tokens_per_s"] if len(rows) > 1 else None,
        "peak_memory_gib": last["peak_memory_gib"],
        "losses": [row["loss"] for row in rows],
    }


def trl(folder: Path, work: str, longest: int) -> dict[str, Any]:
    """SFTTrainer."""
    from benchmarks.peer_trl import measured

    return measured(folder, work, STEPS[work], STEPS[work] - 1, 1, longest, "checkpointed")


SIDES: dict[str, Callable[[Path, str, int], dict[str, Any]]] = {"dumbo": ours, "trl": trl}


def tried(side: str, folder: Path, shape: str, longest: int) -> dict[str, Any]:
    """One length: what it took, or that the memory ran out."""
    import torch

    tokens = (STEPS[WORK[shape]] + 1) * longest
    write_documents(folder, replace(SHAPES[shape], longest=longest), tokens, full_rows=True)
    torch.compiler.reset()
    nothing_held()
    began = time.perf_counter()
    try:
        found = SIDES[side](folder, WORK[shape], longest)
    except Exception as error:
        if "memory" not in str(error).lower():
            raise
        found = {"failed": str(error).splitlines()[0]}
    seconds = round(time.perf_counter() - began, 1)
    return {"shape": shape, "work": WORK[shape], "side": side, "tokens": longest, **found, "seconds": seconds}


def work(side: str, folder: Path, shape: str, memory_gib: float, first: list[int], file: Path) -> None:
    """All lengths of one side; each result is added to a file as soon as it is there."""
    import torch

    def trial(longest: int) -> dict[str, Any]:
        found = tried(side, folder, shape, longest)
        with file.open("a") as results:
            results.write(json.dumps(found) + "\n")
        return found

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gib * 2**30 / total))
    nothing_saved()
    one, other = (trial(longest) for longest in first)
    if "failed" in other or not torch.cuda.is_available():
        return
    slope = (other["peak_memory_gib"] - one["peak_memory_gib"]) / (other["tokens"] - one["tokens"])
    longest = int(other["tokens"] + (memory_gib - other["peak_memory_gib"]) / slope)
    for _ in range(4):
        longest = int(BACK * longest) // 1024 * 1024
        if "failed" not in trial(longest):
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["llama1b", "llama8b"], choices=list(SHAPES))
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--memory-gib", type=float, default=79.0, help="what torch may take, as on an H100 of 80 GB")
    parser.add_argument("--first", type=int, nargs=2, help="lengths that give the line, in place of the shape's")
    parser.add_argument("--small", action="store_true", help="a tiny shape, two short lengths")
    parser.add_argument("--folder", type=Path, help="where models and runs lie meanwhile; a disk in memory is quickest")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        side, shape, file = asked.work
        work(side, asked.folder, shape, asked.memory_gib, asked.first, Path(file))
        return
    if asked.small:
        asked.shapes = ["tiny"]
    record = Record(asked.out.stem, "the longest document that trains, ours and TRL's", asked.out.parent, ("trl",))
    record.facts["memory_gib"] = asked.memory_gib
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        os.environ["DUMBO_CACHE"] = str(Path(temporary) / "cache")
        for shape in asked.shapes:
            folder = Path(temporary) / shape
            write_model(folder, replace(SHAPES[shape], longest=1 << 20))
            for side in asked.sides:
                if side == "trl" and importlib.util.find_spec("trl") is None:
                    rows.append({"shape": shape, "side": side, "failed": "trl is not installed"})
                    continue
                file = Path(temporary) / f"{shape}-{side}.results"
                command = [sys.executable, "-m", "benchmarks.longest", "--work", side, shape, str(file),
                           "--memory-gib", str(asked.memory_gib), "--first", *map(str, asked.first or FIRST[shape]), "--folder", str(folder),
                           "--out", str(asked.out)]  # fmt: skip
                started = subprocess.Popen(command)
                before = list(rows)
                while (code := started.poll()) is None:
                    time.sleep(1)
                    rows[len(before) :] = _so_far(file)
                    record.facts["rows"] = rows
                    record.write()  # what is measured stays, whatever comes
                rows[len(before) :] = _so_far(file)
                if code:
                    rows.append({"shape": shape, "side": side, "failed": f"exit code {code}"})
                record.write()
    for row in rows:
        print(row)


def _so_far(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


if __name__ == "__main__":
    main()
