"""Cross-entropy of rows of logits in one kernel, which leaves their gradients where the logits were.

Used by `chunks.py` where Triton runs. A program takes one row: it reads it once for the largest logit and the sum of exponentials,
kept up to date while the blocks go by (Milakov & Gimelshein 2018, arXiv:1805.02867), and once more to write softmax
minus target. The arithmetic is float32, whatever the logits' dtype. No atomics: the same input always has the same
gradients, bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1.0e30)
"""Below any logit, and finite: a block of logits that are all -inf stays free of NaN."""
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _capped(logits, cap, CAPPED: tl.constexpr):
    """cap * tanh(logits / cap), by exponentials that cannot overflow."""
    if CAPPED:
        small = tl.exp2(tl.abs(logits) * (-2 * LOG2E) / cap)
        size = cap * (1 - small) / (1 + small)
        logits = tl.where(logits < 0, -size, size)
    return logits


@triton.jit
def row_losses(
    logits, targets, losses, stride, vocabulary, cap,
    IGNORE: tl.constexpr, CAPPED: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row.

    Args:
        logits: (rows, vocabulary), rows `stride` apart; with GRADIENT they are overwritten.
        targets: (rows,); IGNORE: no loss and no gradient.
        losses: (rows,) float32, written.
        cap: of the logits, where CAPPED.
    """
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    begin = logits + row * stride
    target = tl.load(targets + row)
    if target == IGNORE:
        tl.store(losses + row, 0.0)
        if GRADIENT:
            for start in range(0, vocabulary, BLOCK):
                zeros = tl.zeros((BLOCK,), tl.float32).to(logits.dtype.element_ty)
                tl.store(begin + start + places, zeros, mask=start + places < vocabulary)
    else:
        # Before the loop, whose reductions all warps wait for: behind it another warp may have written the gradient there.
        there = (target >= 0) & (target < vocabulary)  # else the loss is NaN, which a run notices
        wanted = _capped(tl.load(begin + target, mask=there, other=float("nan")).to(tl.float32), cap, CAPPED)
        highest = LOWEST
        total = 0.0
        for start in range(0, vocabulary, BLOCK):
            inside = start + places < vocabulary
            own = _capped(tl.load(begin + start + places, mask=inside, other=0.0).to(tl.float32), cap, CAPPED)
            own = tl.where(inside, own, float("-inf"))
            higher = tl.maximum(highest, tl.max(own, 0))
            total = total * tl.exp2((highest - higher) * LOG2E) + tl.sum(tl.exp2((own - higher) * LOG2E), 0)
            highest = higher
        lse = highest + tl.log2(total) / LOG2E
        tl.store(losses + row, lse - wanted)
        if GRADIENT:
            for start in range(0, vocabulary, BLOCK):
                inside = start + places < vocabulary
                own = tl.load(begin + start + places, mask=inside, other=0.0).to(tl.float32)
                own = _capped(own, cap, CAPPED)
                gradient = tl.exp2((own - lse) * LOG2E) - tl.where(start + places == target, 1.0, 0.0)
                if CAPPED:
                    gradient = gradient * (1 - (own / cap) * (own / cap))
                tl.store(begin + start + places, gradient.to(logits.dtype.element_ty), mask=inside)
