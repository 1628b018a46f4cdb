"""Output head and loss alone, with their gradients: torch's operations, the same compiled, and the kernel of `trainer/row_loss.py`.

    python -m benchmarks.loss --out benchmarks/results/NAME.json           # on one GPU, a minute
    python -m benchmarks.loss --tune --out /tmp/tuned.json                 # which blocks are fastest here
    python -m benchmarks.loss --small --out /tmp/small.json                # on a CPU, where torch's operations alone can run

Chunks and dtypes are those of training with master weights. Ways are timed in turn, each until the device is done, the median of the rounds;
losses and gradients are compared with those of torch's operations.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import Record
from dumbo.patch.chunked_loss import ChunkedLoss
from dumbo.patch.compile import Compile
from dumbo.trainer import row_loss
from dumbo.trainer.chunks import chunk_loss, summed_loss

SHAPES = {
    "smollm135": (576, 49152, True, 131_072),
    "llama1b": (2048, 128256, True, 32_768),
    "llama1b, LoRA": (2048, 128256, False, 32_768),
    "llama8b, LoRA": (4096, 128256, False, 8_192),
    "small": (32, 512, True, 256),
}
"""Width, vocabulary, whether the head trains, tokens a step."""
TIMES = 20
"""Launches between two waits, so that waiting does not count."""
BLOCKS, WARPS = (4096, 8192, 16384, 32768), (8, 16, 32)


def ways() -> dict[str, Any]:
    """Name -> what does a chunk."""
    own = {"torch": chunk_loss}
    if Compile().unavailable() is None:
        own |= {"compiled": ChunkedLoss(kernel=False)._function(), "kernel": row_loss.RowLoss()}
    return own


def given(shape: str) -> tuple[Any, torch.Tensor, torch.Tensor, int]:
    """Head, hidden states, targets, tokens a chunk."""
    width, vocabulary, trains, tokens = SHAPES[shape]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    head = torch.nn.Linear(width, vocabulary, bias=False, device=device, dtype=torch.bfloat16).requires_grad_(trains)
    hidden = torch.randn(tokens, width, device=device, dtype=torch.bfloat16, requires_grad=True)
    return (
        head,
        hidden,
        torch.randint(0, vocabulary, (tokens,), device=device),
        ChunkedLoss().tokens(vocabulary, trains),
    )


def once(of_chunk: Any, head: Any, hidden: torch.Tensor, targets: torch.Tensor, size: int) -> list[torch.Tensor]:
    """The mean loss and the gradients."""
    head.zero_grad()
    hidden.grad = None
    loss = summed_loss(head, None, hidden, targets, None, size, of_chunk) / len(targets)
    loss.backward()
    found = [
        loss.detach(),
        hidden.grad,
        *(parameter.grad for parameter in head.parameters() if parameter.requires_grad),
    ]
    return [tensor for tensor in found if tensor is not None]


def took(work: Callable[[], Any]) -> float:
    """Milliseconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began)


def measured(shape: str, rounds: int) -> dict[str, Any]:
    """A row: each way's milliseconds, and how far its loss and gradients are from those of torch's operations."""
    own, inputs = ways(), given(shape)
    wanted = once(own["torch"], *inputs)
    apart = {}
    for name, of_chunk in own.items():
        pairs = zip(once(of_chunk, *inputs), wanted, strict=True)
        apart[name] = max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)
    times: dict[str, list[float]] = {name: [] for name in own}
    for _, (name, of_chunk) in itertools.product(range(rounds), own.items()):
        times[name].append(took(partial(once, of_chunk, *inputs)))
    width, vocabulary, trains, tokens = SHAPES[shape]
    return {
        "shape": shape, "width": width, "vocabulary": vocabulary, "head_trains": trains, "tokens": tokens, "chunk": inputs[-1],
        "ms": {name: round(statistics.median(found), 3) for name, found in times.items()}, "apart": apart,
    }  # fmt: skip


def tuned(shape: str, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of the kernel alone over a chunk's logits, by block and warps."""
    _, vocabulary, trains, _ = SHAPES[shape]
    size = ChunkedLoss().tokens(vocabulary, trains)
    logits = torch.randn(size, vocabulary, device="cuda", dtype=torch.bfloat16)
    targets = torch.randint(0, vocabulary, (size,), device="cuda")
    found = []
    for block, warps in itertools.product(BLOCKS, WARPS):
        row_loss.cut = lambda vocabulary: (block, warps)  # noqa: B023
        once = partial(row_loss.RowLoss().rows, logits, targets, None, gradients=True)
        once()
        ms = statistics.median(took(lambda: [once() for _ in range(TIMES)]) / TIMES for _ in range(rounds))  # noqa: B023
        found.append({"shape": shape, "block": block, "warps": warps, "ms": round(ms, 3),
                      "tb_per_s": round(2 * logits.numel() * 2 / ms / 1e9, 2)})  # fmt: skip
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="+", choices=list(SHAPES), default=[name for name in SHAPES if name != "small"]
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--small", action="store_true", help="the small shape, three rounds")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    asked = parser.parse_args()
    if asked.tune and (reason := Compile().unavailable()) is not None:
        parser.error(f"--tune: {reason}")
    if asked.small:
        asked.shapes, asked.rounds = ["small"], 3
    record = Record(asked.out.stem, "head and loss with their gradients, in turn", asked.out.parent, ("triton",))
    table: list[dict[str, Any]] = []
    for shape in asked.shapes:
        table += tuned(shape, asked.rounds) if asked.tune else [measured(shape, asked.rounds)]
        print(table[-1], flush=True)
    record.facts["table"] = table
    print(record.write())


if __name__ == "__main__":
    main()
