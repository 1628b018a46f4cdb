"""Tokens per second on one GPU through the normal command, and of TRL beside it in the same run.

    python -m benchmarks.gpu --table --out benchmarks/results/NAME.json                         # the README's, an hour
    python -m benchmarks.gpu --shapes smollm135 llama1b --work full lora --out benchmarks/results/NAME.json
    python -m benchmarks.gpu --shapes tiny --steps 4 --warmup 2 --out /tmp/smoke.json           # works on a CPU

Random weights and documents (`made_up.py`). Every row is a command line that a user could type, run in a process of its
own; of it, the steps after the warm-up count, of which there should be 20 or more: tokens, real ones only, over
seconds, the median of the logged intervals (a step that captures a graph is in few of them). TRL packed with Liger
(`peer_trl.py`) is measured in the same run, where it is installed. Kernels are compiled anew for each row. Each row says on what
and when it was measured, from which commit, and with which others in one run; its losses are means of ten steps each, as the
peer's are, at one learning rate.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, cases, steps
from benchmarks.made_up import SHAPES, write_documents, write_model
from benchmarks.one_run import by_tens, seen, speed, warm_up
from benchmarks.record import commit

FAST = ["compile", "chunked_loss"]
TILES = [*FAST, "tile_attention"]
AHEAD, MASTERS = "trainer.prefetch=true", "trainer.master_weights=true"
AUTO = "performance=auto"
VARIANTS: dict[str, tuple[list[str], list[str]]] = {
    "auto": ([], [AUTO]),
    "auto_masters": ([], [AUTO, MASTERS]),
    "auto_checkpointed": (["gradient_checkpointing"], [AUTO]),
    "plain": ([], []),
    "liger": (["liger"], []),
    "chunked": (["chunked_loss"], []),
    "compiled": (FAST, [AHEAD]),
    "no_graphs": (FAST, [AHEAD, "trainer.cuda_graphs=false"]),
    "masters": (FAST, [AHEAD, MASTERS]),
    "fused": ([*FAST, "fused_lora"], [AHEAD]),
    "checkpointed": ([*FAST, "gradient_checkpointing"], [AHEAD]),
    "tiles": (TILES, [AHEAD]),
    "tiles_masters": (TILES, [AHEAD, MASTERS]),
    "tiles_fused": ([*TILES, "fused_lora"], [AHEAD]),
    "tiles_checkpointed": ([*TILES, "fused_lora", "gradient_checkpointing"], [AHEAD]),
    **{
        f"tiles_checkpointed_{layers}": (
            [*TILES, "fused_lora", "gradient_checkpointing"],
            [AHEAD, f"patch.gradient_checkpointing.layers={layers}"],
        )
        for layers in (8, 16, 24)
    },
}
"""Name -> patches beside LoRA's, further words. `auto` compiles from 7,000 layers times steps on, so it needs as many --steps."""
PEERS = {"trl": "packed", "trl_checkpointed": "checkpointed", "trl_default": "default"}
"""Name -> how `peer_trl.py` is to run."""
FIXED = ["formatter=text", "dataset.eval_fraction=0", "trainer.num_answers=0", "trainer.num_samples=0", "trainer.lr=1e-4",
         "trainer.eval_every=null", "trainer.save_every=null", "trainer.warmup_steps=0", "trainer.lr_scheduler=constant",
         "launch=single"]  # fmt: skip


def words_of(folder: Path, shape: str, work: str, variant: str, asked: argparse.Namespace) -> list[str]:
    """One row's command line, without how many steps and where."""
    own, more = VARIANTS[variant]
    patches = [*own, *asked.patches, *(["lora"] if work == "lora" else [])]
    more = more if AUTO in more else ["performance=off", *more]
    return [
        "model=pretrained", f"model.path={folder}", "dataset=files",
        f"dataset.path={folder / 'docs.jsonl'}", *FIXED, f"patch=[{','.join(patches)}]",
        f"trainer.max_seq_len={_longest(shape, asked)}", f"trainer.global_batch_size={asked.packs}",
        f"trainer.micro_batch_size={asked.packs}", f"trainer.log_every={asked.log_every}", *more, *asked.words,
    ]  # fmt: skip


def ours(folder: Path, shape: str, work: str, variant: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One row of ours: what it left in run.json and metrics.jsonl."""
    run = folder / f"{work}-{variant}-{asked.packs}"
    own = words_of(folder, shape, work, variant, asked)
    words = [*own, f"trainer.max_steps={asked.steps}", f"run_dir={run}"]
    at = seen([sys.executable, "-m", "dumbo", *words])
    facts = json.loads((run / "run.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = [row for row in rows if "loss" in row]
    return {
        "command": "python -m dumbo " + " ".join(word for word in words if not word.startswith("run_dir=")),
        **speed(training, asked.warmup),
        **warm_up(training, asked.warmup, at),
        "losses": by_tens(training),
        "peak_memory_gib": training[-1]["peak_memory_gib"],
        "seconds": facts["metrics"]["seconds"],
        **{key: facts.get(key) for key in ("patches", "cuda_graphs", "packing", "proofs", "hardware", "versions")},
    }


def _longest(shape: str, asked: argparse.Namespace) -> int:
    return asked.longest or SHAPES[shape].longest


def trl(folder: Path, shape: str, work: str, variant: str, asked: argparse.Namespace) -> dict[str, Any]:
    """The peer's row."""
    numbers = [asked.steps, asked.warmup, asked.packs, _longest(shape, asked)]
    more = [*map(str, numbers), PEERS[variant]]
    said = _done([sys.executable, "-m", "benchmarks.peer_trl", str(folder), work, *more], capture=True)
    return json.loads(said.strip().splitlines()[-1])


def _done(command: list[str], capture: bool = False) -> str:
    print("+", " ".join(command[1:]), flush=True)
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE if capture else None)
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}: {' '.join(command[1:])}\n{done.stdout or ''}")
    return done.stdout or ""


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named = "the README's rows, or those of them that --shapes, --work, --variants and --full-rows name; rows that the file has stay"
    parser.add_argument("--table", action="store_true", help=named)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), help="default: smollm135")
    parser.add_argument("--work", nargs="+", choices=["full", "lora"], help="default: both")
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, *PEERS], help="default: tiles and trl")
    parser.add_argument("--packs", type=int, default=8, help="packs of max_seq_len tokens a step")
    parser.add_argument("--longest", type=int, help="tokens of a pack, instead of the shape's own")
    parser.add_argument("--full-rows", action="store_true", help="documents that fill their pack")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--warmup", type=int, default=40)
    parser.add_argument("--log-every", type=int, default=1)
    parser.add_argument("--patches", nargs="*", default=[], help="further patches for our rows")
    parser.add_argument("--words", nargs="*", default=[], help="further words for dumbo's command line")
    parser.add_argument("--folder", type=Path, help="where models and runs lie meanwhile; a disk in memory is quickest")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    asked = parser.parse_args(words)
    own = ("packs", "longest", "steps", "warmup")
    if asked.table and (ignored := [name for name in own if getattr(asked, name) != parser.get_default(name)]):
        parser.error(f"--table has its own --{ignored[0].replace('_', '-')}")
    before: Any = json.loads(asked.out.read_text()) if asked.table and asked.out.exists() else []
    if not isinstance(before, list):
        parser.error(f"{asked.out} holds something else than rows")
    if not cases(asked):
        parser.error("the table has no such row")
    asked.log_every = min(asked.log_every, asked.warmup)
    results: list[dict[str, Any]] = before
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        os.environ["DUMBO_CACHE"] = str(Path(temporary) / "cache")
        for case in cases(asked):
            folder = Path(temporary) / case.shape
            _prepare(folder, case, asked)
            for variant in case.variants:
                for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
                    os.environ[name] = tempfile.mkdtemp(
                        dir=temporary
                    )  # seconds to the first fast step have compiling in them
                row = {**_row(folder, case, variant, asked), "run": began, **commit()}
                results = with_row(results, row)
                asked.out.parent.mkdir(parents=True, exist_ok=True)
                asked.out.write_text(json.dumps(results, indent=1, ensure_ascii=False, default=str) + "\n")
    for row in results:
        speed = f"{row['tokens_per_s']:>12,.0f} tokens/s" if "tokens_per_s" in row else f"   {row['failed']}"
        print(
            f"{row['shape']:<10} {row['work']:<5} {row['variant']:<9}{speed}",
            row.get("mfu"),
            row.get("peak_memory_gib"),
        )


def settings_of(environment: Mapping[str, str]) -> dict[str, str]:
    """What is set there for torch's kernels and memory, but where kernels are kept and by how many threads they are made."""
    of_torch = (
        "TORCHINDUCTOR_",
        "TORCH_COMPILE_",
        "TRITON_",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "CUBLAS_",
    )
    beside = ("_DIR", "_HOME", "_PATH", "COMPILE_THREADS")
    return {
        name: value
        for name, value in sorted(environment.items())
        if name.startswith(of_torch) and not name.endswith(beside)
    }


HEAD = ("shape", "work", "variant", "packs", "max_seq_len", "documents", "more", "environment")
"""What says which row it is."""


def with_row(rows: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """The table with a row measured anew in the place of what an earlier run had; one that failed takes no other's place."""
    earlier = [
        other for other in rows if other.get("run") != row["run"] and all(other.get(k) == row.get(k) for k in HEAD)
    ]
    if "failed" in row and any("failed" not in other for other in earlier):
        return rows
    return [*(other for other in rows if other not in earlier), row]


def _prepare(folder: Path, case: Case, asked: argparse.Namespace) -> None:
    """The shape's model, once, and the documents that the longest of the case's rows needs."""
    if not folder.exists():
        write_model(folder, case.documents)
    last = max(steps(case, variant, asked)[0] for variant in case.variants)
    tokens = int(1.02 * (last + 2) * case.packs * case.documents.longest)
    write_documents(folder, case.documents, tokens, full_rows=case.full_rows)


def _row(folder: Path, case: Case, variant: str, asked: argparse.Namespace) -> dict[str, Any]:
    """A row that fails says why and leaves the others standing."""
    last, warmup = steps(case, variant, asked)
    own = argparse.Namespace(
        **{**vars(asked), "packs": case.packs, "longest": case.longest, "steps": last, "warmup": warmup}
    )
    head = {
        "shape": case.shape,
        "work": case.work,
        "variant": variant,
        "packs": case.packs,
        "max_seq_len": case.documents.longest,
        "documents": "all as long as a pack" if case.full_rows else "lognormal lengths",
        **({"more": more} if (more := [*asked.patches, *asked.words]) else {}),
        **({"environment": settings} if (settings := settings_of(os.environ)) else {}),
    }
    began = time.perf_counter()
    if variant in PEERS and importlib.util.find_spec("trl") is None:
        return {**head, "failed": "trl is not installed"}
    try:
        found = (trl if variant in PEERS else ours)(folder, case.shape, case.work, variant, own)
    except RuntimeError as error:
        return {**head, "failed": str(error)}
    return {**head, **found, "wall_s": round(time.perf_counter() - began, 1)}


if __name__ == "__main__":
    main()
