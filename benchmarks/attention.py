"""Attention over packs alone, forward and backward: `trainer/tiles.py` beside torch's variable-length flash attention.

    python -m benchmarks.attention --out benchmarks/results/NAME.json             # on one GPU, a minute
    python -m benchmarks.attention --tune --out /tmp/tuned.json                   # which tiles are fastest here

Documents are those of `made_up.py` (mean about 250 tokens), long ones of 300 to 20,000 tokens, and full rows of 1,024 to 65,536,
where cuDNN's attention, which takes rows alone, stands beside them. "packs" are the tiles of batches as training has them: with
long documents in cuDNN (`trainer/long_attention.py`). Times are of torch's events, the caches emptied before each
(triton.testing.do_bench); all are given the same tensors, and outputs and gradients are compared with those of torch's
variable-length kernel, in the distance that bf16 has.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.made_up import documents
from benchmarks.record import Record

HEADS = {"smollm135": (9, 3, 64), "llama1b": (32, 8, 64), "llama8b": (32, 8, 128)}
"""Heads, key-value heads, width."""
LENGTHS: dict[str, Callable[[int], list[int]]] = {
    "documents": lambda tokens: [len(ids) for ids in documents(49_152, 2048, tokens)],
    "long documents": lambda tokens: _long(tokens),
    "rows of 1024": lambda tokens: [1024] * (tokens // 1024),
    "rows of 4096": lambda tokens: [4096] * (tokens // 4096),
    "rows of 16384": lambda tokens: [16_384] * (tokens // 16_384),
    "rows of 65536": lambda tokens: [65_536] * (tokens // 65_536),
}


def _long(tokens: int) -> list[int]:
    """Lengths about 6,000, one after the other until they fill the axis."""
    numbers = np.random.default_rng(0)
    found: list[int] = []
    while sum(found) < tokens:
        found.append(int(np.clip(numbers.lognormal(8.7, 0.7), 300, 20_000)))
    return found


CANDIDATES = list(itertools.product((32, 64, 128), (32, 64, 128), (4, 8), (2, 3)))
PARTS = ("forward", "queries", "keys")


def tensors(shape: str, lengths: str, tokens: int) -> dict[str, Any]:
    import torch

    from dumbo.trainer import long_documents

    heads, shared, width = HEADS[shape]
    cut = np.minimum(np.concatenate([[0], np.cumsum(LENGTHS[lengths](tokens))]), tokens)
    bounds = np.unique(cut).astype(np.int32)
    torch.manual_seed(0)
    q, k, v, grad = (
        torch.randn(tokens, n, width, device="cuda", dtype=torch.bfloat16) for n in (heads, shared, shared, heads)
    )
    here = torch.from_numpy(bounds)
    told = here.cuda()
    long_documents.tell({"cu_seq_lens_q": here}, {"cu_seq_lens_q": told})
    return {"q": q, "k": k, "v": v, "grad": grad, "bounds": here.cuda(), "told": told, "scale": width**-0.5,
            "longest": int(np.diff(bounds).max())}  # fmt: skip


def _leaves(given: dict[str, Any]) -> list[Any]:
    return [given[name].detach().requires_grad_() for name in "qkv"]


def _tiles(given: dict[str, Any], bounds: str = "bounds") -> tuple[Any, list[Any]]:
    from dumbo.trainer.tiles import tile_attention

    leaves = _leaves(given)
    return tile_attention(*leaves, given[bounds], 0, given["scale"])[0], leaves


def _packs(given: dict[str, Any]) -> tuple[Any, list[Any]]:
    """What training takes."""
    return _tiles(given, "told")


def _varlen(given: dict[str, Any]) -> tuple[Any, list[Any]]:
    from dumbo.trainer.varlen import attend

    leaves = _leaves(given)
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in leaves)
    return attend(q, k, v, given["bounds"], given["longest"], None, given["scale"])[0], leaves


def _cudnn(given: dict[str, Any]) -> tuple[Any, list[Any]]:
    """For rows of one length."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    leaves = _leaves(given)
    q, k, v = (tensor.unflatten(0, (-1, given["longest"])).transpose(1, 2) for tensor in leaves)  # (B, heads, T, width)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=given["scale"], enable_gqa=True)
    return out.transpose(1, 2).flatten(0, 1), leaves


WAYS = {"tiles": _tiles, "varlen": _varlen, "packs": _packs, "cudnn": _cudnn}


def ways_for(lengths: str) -> list[str]:
    """cuDNN takes rows alone; where no document is long, packs are tiles."""
    return {"documents": ["tiles", "varlen"], "long documents": ["tiles", "varlen", "packs"]}.get(lengths, list(WAYS))


def times(way: str, given: dict[str, Any], rep: int = 50) -> dict[str, float]:
    """Milliseconds of forward and of backward."""
    import torch
    from triton.testing import do_bench

    with torch.no_grad():
        forward = do_bench(lambda: WAYS[way](given)[0], warmup=10, rep=rep)
    out, leaves = WAYS[way](given)
    backward = do_bench(lambda: torch.autograd.grad(out, leaves, given["grad"], retain_graph=True), warmup=10, rep=rep)
    return {"forward_ms": forward, "backward_ms": backward}


def apart(way: str, given: dict[str, Any]) -> float:
    """The largest relative distance (of norms) of a way's output and gradients from those of torch's kernel."""
    import torch

    found = []
    for other in (way, "varlen"):
        out, leaves = WAYS[other](given)
        found.append([out, *torch.autograd.grad(out, leaves, given["grad"])])
    return max(float((a - b).float().norm() / b.float().norm()) for a, b in zip(*found, strict=True))


def measured(shape: str, lengths: str, tokens: int) -> dict[str, Any]:
    """A row: each way's times, how far it is from torch's kernel, and how often its time goes into that one's."""
    given = tensors(shape, lengths, tokens)
    row: dict[str, Any] = {"shape": shape, "lengths": lengths, "tokens": tokens, "apart": {}, "ratio": {}}
    for way in ways_for(lengths):
        try:
            row["apart"][way] = apart(way, given)
            row[way] = times(way, given)
        except RuntimeError as error:  # a kernel that this GPU or this torch has not
            row[way] = {"failed": str(error).splitlines()[0]}
    both = {way: sum(row[way].values()) for way in ways_for(lengths) if "failed" not in row[way]}
    row["ratio"] = {way: both["varlen"] / took for way, took in both.items() if way != "varlen"}
    return row


@contextmanager
def _cut(part: str, candidate: tuple[int, int, int, int]) -> Iterator[None]:
    from dumbo.trainer import tiles

    before = tiles.TILES[part]
    tiles.TILES[part] = tiles.Tile(*candidate)
    try:
        yield
    finally:
        tiles.TILES[part] = before


def _compiles(task: tuple[str, str, tuple[int, int, int, int]]) -> tuple[str, str, tuple[int, int, int, int]] | None:
    """In a process of its own: the kernels lie in Triton's cache afterwards. None where they cannot be had."""
    import torch
    from triton.runtime.errors import OutOfResources

    shape, part, candidate = task
    given = tensors(shape, "documents", 4096)
    try:
        with _cut(part, candidate):
            out, leaves = _tiles(given)
            torch.autograd.grad(out, leaves, given["grad"])
        torch.cuda.synchronize()
    except OutOfResources:  # that is an answer
        return None
    return task


def tuned(shapes: list[str], tokens: int) -> list[dict[str, Any]]:
    """Every candidate of each part, the others as they are."""
    tasks = [(s, p, c) for s in shapes for p in PARTS for c in CANDIDATES]
    with multiprocessing.get_context("spawn").Pool(12) as pool:
        usable = [task for task in pool.imap_unordered(_compiles, tasks, chunksize=4) if task is not None]
    assert usable, "no candidate fits this GPU"
    found = []
    for shape, part, candidate in sorted(usable):
        with _cut(part, candidate):
            took = times("tiles", tensors(shape, "documents", tokens), rep=15)
        found.append({"shape": shape, "part": part, "tile": candidate, **took})
    for shape, part in itertools.product(shapes, PARTS):
        own = [row for row in found if (row["shape"], row["part"]) == (shape, part)]
        key = "forward_ms" if part == "forward" else "backward_ms"
        for row in sorted(own, key=lambda row: row[key])[:6]:
            print(shape, part, row["tile"], f"{row[key]:.3f} ms", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--lengths", nargs="+", choices=list(LENGTHS), default=list(LENGTHS))
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    record = Record(asked.out.stem, "attention over packs, forward and backward", asked.out.parent, ("triton",))
    rows = []
    for shape, lengths in () if asked.tune else itertools.product(asked.shapes, asked.lengths):
        row = measured(shape, lengths, asked.tokens)
        rows.append(row)
        print(row, flush=True)
    record.facts["table"] = tuned(asked.shapes, asked.tokens) if asked.tune else rows
    print(record.write())


if __name__ == "__main__":
    main()
