"""Attention within documents, made for packs of short ones (`tile_kernels.py`): on a GPU, in bf16 or fp16.

torch's own kernel (`varlen.py`) cuts each document into tiles of its own, adds gradients of queries up atomically in
float32 and makes gradients of keys for every head that shares them. Here tiles are cut from the token axis, whatever
begins or ends in them, and each looks only at the keys of its tokens' documents. Gradients of tiles are the same bits each time.
A number that is not finite reaches the documents that share a tile with it: such a batch is skipped as a whole anyway
(`bad_numbers.py`). Long documents, in which tiles of keys are looked at many times, go through cuDNN where that is faster
(`long_attention.py`).

It is an operator of torch (`dumbo::tile_attention_2`): torch.compile, CUDA graphs and fake tensors take it as one piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dumbo.trainer import long_attention, long_documents
from dumbo.trainer.varlen import arithmetic, on_one_axis

NAME = "dumbo::tile_attention_2"
"""With a number that counts what an operator takes, returns and how it is differentiated: torch's caches of compiled graphs,
which outlive a process, know it by its name alone (a test holds both together)."""
WIDTHS = (16, 32, 64, 128)
"""Of heads: what the kernels' tiles are made for."""


@dataclass(frozen=True)
class Tile:
    """How much of the token axis a program takes, and with what. Measured: `benchmarks.attention`."""

    queries: int
    keys: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        return {"QUERIES": self.queries, "KEYS": self.keys, "num_warps": self.warps, "num_stages": self.stages}


TILES = {"forward": Tile(64, 32, 4, 3), "queries": Tile(64, 32, 4, 3), "keys": Tile(32, 64, 4, 3)}
"""Each part's: of 36 the fastest on an H200 for heads of 64 and of 128 (`benchmarks.attention --tune`)."""
LOG2_E = 1.4426950408889634


def usable(query: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    """Whether the kernels can take these tensors, (1, heads, T, width) each. What the machine needs: `patch/tile_attention.py`."""
    return (
        query.device.type == "cuda"
        and dropout == 0
        and query.shape[-1] == value.shape[-1]
        and query.shape[-1] in WIDTHS
        and arithmetic(value) in (torch.bfloat16, torch.float16)
    )


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    window: int | None,
    scale: float | None,
) -> torch.Tensor:
    """Causal attention within documents.

    Args:
        query: (1, heads, T, width); key and value: (1, key-value heads, T, width).
        bounds: (documents + 1,) int32, where each document begins.
        window: tokens that a token may look back to, itself included; None: all.
        scale: of the scores; None: one over the root of the width.

    Returns:
        (1, T, heads, width), in the dtype of the arithmetic.
    """
    q, k, v = on_one_axis(query, key, value)
    return tile_attention(q, k, v, bounds, window or 0, query.shape[-1] ** -0.5 if scale is None else scale)[0][None]


@torch.library.custom_op(NAME, mutates_args=())
def tile_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, window: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Causal attention within documents.

    Args:
        q: (T, heads, width); k and v: (T, key-value heads, width), contiguous.
        bounds: (documents + 1,) where each document begins, the first at 0; tokens after the last are one document more.
        window: tokens that a token may look back to, itself included; 0: all.
        scale: of the scores.

    Returns:
        (T, heads, width); log2 of the sums of 2^scores, (heads, T); (2, T) each token's document's first token, and the
        one after its last (for a token of what cuDNN does: itself, and the next); what cuDNN keeps; on the CPU, (n, 4) the
        parts that it does, zeros after the last.

    Raises:
        ValueError: tensors that are not contiguous or not of one length.
    """
    import triton

    from dumbo.trainer import tile_kernels

    tokens, heads, width = q.shape
    if not (q.is_contiguous() and k.is_contiguous() and v.is_contiguous() and len(k) == len(v) == tokens):
        raise ValueError(f"tile_attention takes contiguous tensors of one length, got {q.shape}, {k.shape}, {v.shape}.")
    lse, documents, kept, listed = _room(q, bounds)
    parts = long_attention.parts_for(q, k, bounds, window)
    out = None if long_documents.fills(parts, tokens) else torch.empty_like(q)
    with torch.cuda.device_of(q):  # Triton launches where the process is
        if _left(parts, tokens):
            tile_kernels.bounds_of_tokens[(len(bounds),)](
                bounds, documents[0], documents[1], len(bounds) - 1, tokens, BLOCK=256, num_warps=4
            )
            for part in parts:  # a document each: tiles are through with them at once
                torch.arange(part.start, part.end, out=documents[0, part.start : part.end])
                torch.arange(part.start + 1, part.end + 1, out=documents[1, part.start : part.end])
            cut = TILES["forward"]
            tile_kernels.attention_forward[(triton.cdiv(tokens, cut.queries), heads)](
                q, k, v, out, lse, documents[0], tokens, window, scale * LOG2_E,
                HEADS=heads, SHARING=heads // k.shape[1], WIDTH=width, WINDOW=window > 0, **cut.options,
            )  # fmt: skip
        if parts:
            listed[: len(parts)] = torch.tensor(parts, dtype=listed.dtype)
            out = long_attention.forward(q, k, v, parts, scale, out, kept)
    assert out is not None
    return out, lse, documents, kept, listed


def _room(q: torch.Tensor, bounds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the operator writes what it keeps for its gradients. Compiled graphs know the sizes, so that they do not depend on
    where documents lie: as many float32 again as there are for tiles, and a sixteenth, whether or not there are long ones."""
    tokens, heads = q.shape[0], q.shape[1]
    return (
        q.new_empty((heads, tokens), dtype=torch.float32),
        bounds.new_empty((2, tokens), dtype=torch.int32),
        q.new_empty((heads * long_documents.room(tokens),), dtype=torch.float32),
        torch.zeros((tokens // long_documents.LONG, 4), dtype=torch.int64),
    )


def _left(parts: list[long_documents.Part], tokens: int) -> bool:
    """Whether there are tokens for tiles."""
    return sum(part.end - part.start for part in parts) < tokens


@tile_attention.register_fake
def _(q: Any, k: Any, v: Any, bounds: Any, window: int, scale: float) -> Any:
    return torch.empty_like(q), *_room(q, bounds)


@torch.library.custom_op(f"{NAME}_backward", mutates_args=())
def tile_attention_backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, documents: torch.Tensor,
    kept: torch.Tensor, listed: torch.Tensor, grad: torch.Tensor, window: int, scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """The gradients of q, k and v; `out` to `listed` as `tile_attention` returns them."""
    import triton

    from dumbo.trainer import tile_kernels

    tokens, heads, width = q.shape
    shape: dict[str, Any] = {"HEADS": heads, "SHARING": heads // k.shape[1], "WIDTH": width, "WINDOW": window > 0}
    grad = grad.contiguous()
    parts = [long_documents.Part(*numbers) for numbers in listed.tolist() if numbers[2]]
    if long_documents.fills(parts, tokens):
        found = long_attention.backward(q, k, v, out, kept, grad, parts, scale, [None] * 3)
        return found[0], found[1], found[2]
    dq, dk, dv, delta = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), torch.empty_like(lse)
    with torch.cuda.device_of(q):
        if _left(parts, tokens):
            cut = TILES["queries"]
            tile_kernels.queries_backward[(triton.cdiv(tokens, cut.queries), heads)](
                q, k, v, out, grad, lse, delta, dq, documents[0], tokens, window, scale, scale * LOG2_E,
                **shape, **cut.options,
            )  # fmt: skip
            cut = TILES["keys"]
            tile_kernels.keys_backward[(triton.cdiv(tokens, cut.keys), k.shape[1])](
                q, k, v, grad, lse, delta, dk, dv, documents[0], documents[1], tokens, window, scale, scale * LOG2_E,
                **shape, **cut.options,
            )  # fmt: skip
        long_attention.backward(q, k, v, out, kept, grad, parts, scale, (dq, dk, dv))
    return dq, dk, dv


@tile_attention_backward.register_fake
def _(q: Any, k: Any, v: Any, *rest: Any) -> Any:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, _, ctx.window, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: torch.Tensor, *unused: Any) -> Any:
    return *tile_attention_backward(*ctx.saved_tensors, grad, ctx.window, ctx.scale), None, None, None


torch.library.register_autograd(NAME, _backward, setup_context=_keep)
