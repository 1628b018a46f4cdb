"""Memory that `dumbo plan` predicts beside what the same command takes, each in a process of its own.

    python -m benchmarks.memory --shapes smollm135 llama1b
    python -m benchmarks.memory --small --out /tmp/smoke        # works on a CPU

Random weights and documents (`made_up.py`). On a GPU what is measured is torch.cuda.max_memory_allocated over the whole
command, on a CPU the peak of resident memory over what it was after the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.made_up import SHAPES, write
from benchmarks.record import RESULTS, Record

VARIANTS: dict[str, list[str]] = {
    "plain": [],
    "checkpointed": ["gradient_checkpointing"],
    "chunked": ["chunked_loss"],
    "compiled": ["compile"],
    "both": ["compile", "chunked_loss"],
    "fast": ["compile", "chunked_loss", "fused_lora"],
    "padded": [],
}
"""Name -> patches beside LoRA's."""
FIXED = ["formatter=text", "dataset.eval_fraction=0", "trainer.num_answers=0", "trainer.num_samples=0", "trainer.max_steps=3",
         "trainer.eval_every=null", "trainer.save_every=null", "launch=single", "performance=off"]  # fmt: skip
STEPS = 3


def words_of(folder: Path, shape: str, work: str, variant: str, asked: argparse.Namespace) -> list[str]:
    """One row's command line, without run_dir."""
    patches = [*VARIANTS[variant], *(["lora"] if work == "lora" else [])]
    packing = "false" if variant == "padded" else "true"
    return [
        "model=pretrained", f"model.path={folder}", "dataset=files",
        f"dataset.path={folder / 'docs.jsonl'}", *FIXED, f"patch=[{','.join(patches)}]",
        f"trainer.max_seq_len={_longest(shape, asked)}", f"trainer.global_batch_size={asked.packs * asked.accumulation}",
        f"trainer.micro_batch_size={asked.packs}", f"trainer.packing={packing}", *asked.words,
    ]  # fmt: skip


def _longest(shape: str, asked: argparse.Namespace) -> int:
    return min(asked.longest or SHAPES[shape].longest, SHAPES[shape].longest)


def predicted(words: list[str]) -> dict[str, Any]:
    """What `dumbo plan` says of the memory."""
    command = [sys.executable, "-m", "dumbo", "plan", "plan.format=json", "plan.measure=false", *words]
    done = subprocess.run(command, check=False, text=True, capture_output=True)
    if not done.stdout.strip():
        raise RuntimeError(f"exit code {done.returncode}: {' '.join(command)}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])["memory"]
    return found


def measured(words: list[str]) -> int:
    """Bytes that the command takes, in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        run = [f"run_dir={Path(temporary) / 'run'}"]
        command = [sys.executable, "-m", "benchmarks.memory", "--child", *words, *run]
        done = subprocess.run(command, check=False, text=True, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(
            f"exit code {done.returncode}: {' '.join(command)}\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
        )
    return int(json.loads(done.stdout.strip().splitlines()[-1])["bytes"])


def child(words: list[str]) -> int:
    """The command here, after all imports; prints what it took."""
    import accelerate  # noqa: F401
    import peft  # noqa: F401
    import polars  # noqa: F401
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    import dumbo.cli
    import dumbo.prepare.prepare
    import dumbo.train
    import dumbo.trainer.session
    from dumbo.plan.meter import CpuMeter, GpuMeter, resident

    before = 0 if torch.cuda.is_available() else resident()
    gauge = GpuMeter() if torch.cuda.is_available() else CpuMeter()
    gauge.begin()
    code = dumbo.cli.main(words)
    print(json.dumps({"bytes": gauge.end() - before}))
    return code


def row(folder: Path, shape: str, work: str, variant: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Predicted and measured; a row that fails says why and leaves the others standing."""
    words = words_of(folder, shape, work, variant, asked)
    head = {
        "shape": shape,
        "work": work,
        "variant": variant,
        "packs": asked.packs,
        "max_seq_len": _longest(shape, asked),
    }
    try:
        plan = predicted(words)
        took = measured(words)
    except RuntimeError as error:
        return {**head, "failed": str(error)}
    return {
        **head,
        "predicted": plan["peak"],
        "measured": took,
        "off": round(plan["peak"] / took - 1, 4),
        "parts": plan["parts"],
    }


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["smollm135"], choices=list(SHAPES))
    parser.add_argument("--work", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    parser.add_argument(
        "--variants",
        nargs="+",
        default=["plain", "checkpointed", "chunked", "compiled", "both"],
        choices=list(VARIANTS),
    )
    parser.add_argument("--packs", type=int, default=4, help="packs of max_seq_len tokens a micro batch")
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--longest", type=int, help="max_seq_len; that of the shape otherwise")
    parser.add_argument("--words", nargs="*", default=[], help="further words for dumbo's command line")
    parser.add_argument("--folder", type=Path, help="where models lie meanwhile; a disk in memory is quickest")
    parser.add_argument("--small", action="store_true", help="one row of a tiny shape")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder for the result")
    asked = parser.parse_args(words)
    if asked.small:
        asked.shapes, asked.work, asked.variants, asked.packs, asked.longest = ["tiny"], ["lora"], ["plain"], 2, 64
    record = Record("memory", "Memory at the peak, predicted by dumbo plan and measured, in bytes", asked.out)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        os.environ["DUMBO_CACHE"] = str(Path(temporary) / "cache")
        for shape in asked.shapes:
            folder = Path(temporary) / shape
            tokens = (STEPS + 1) * asked.packs * asked.accumulation * _longest(shape, asked)
            write(folder, SHAPES[shape], tokens)
            for work in asked.work:
                for variant in asked.variants:
                    rows.append(row(folder, shape, work, variant, asked))
                    record.facts["rows"] = rows
                    file = record.write()
                    print(_shown(rows[-1]), flush=True)
    print(file)


def _shown(one: dict[str, Any]) -> str:
    head = f"{one['shape']:<10} {one['work']:<5} {one['variant']:<13}"
    if "failed" in one:
        return head + one["failed"]
    mega = {name: one[name] / 2**20 for name in ("predicted", "measured")}
    return (
        head
        + f"predicted {mega['predicted']:>9,.0f} MiB   measured {mega['measured']:>9,.0f} MiB   {100 * one['off']:+.1f}%"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2:]))
    main()
