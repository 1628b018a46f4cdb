"""The kernels of `tiles.py`, in Triton: causal attention within documents, over tiles of the one token axis.

Tensors are contiguous: (T, heads, WIDTH) for queries, outputs and their gradients, (T, key-value heads, WIDTH) for keys and
values; `first` and `last` are (T,), a token's document's first token and the one after its last; `lse` and `delta` are
(heads, T) in float32. Scores are in powers of two: `scale` is the attention's scale, `scale2` that times log2(e).

The arithmetic is FlashAttention's (softmax kept up to date while the keys go by, products in the tensors' dtype, sums in
float32; Dao 2023, https://arxiv.org/abs/2307.08691), without its two passes of atomic additions: a program of
`keys_backward` goes through all queries of its keys, all heads that share them too, so that the same input always has the
same gradients, bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

NEVER = tl.constexpr(-1.0e30)
"""Below any score, and finite: rows that have met no key of their own yet stay free of NaN."""


@triton.jit
def bounds_of_tokens(bounds, first, last, documents, tokens, BLOCK: tl.constexpr):
    """One program a document, one more for the tokens after the last: writes `first` and `last`."""
    document = tl.program_id(0)
    begin = tl.load(bounds + document).to(tl.int32)
    end = tokens
    if document < documents:
        end = tl.load(bounds + document + 1).to(tl.int32)
    for at in range(begin, end, BLOCK):
        places = at + tl.arange(0, BLOCK)
        tl.store(first + places, tl.zeros((BLOCK,), tl.int32) + begin, mask=places < end)
        tl.store(last + places, tl.zeros((BLOCK,), tl.int32) + end, mask=places < end)


@triton.jit
def _rows(tensor, places, head, limit, HEADS: tl.constexpr, WIDTH: tl.constexpr):
    """(len(places), WIDTH) of one head; zeros from `limit` on."""
    at = (places.to(tl.int64) * HEADS + head)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    return tl.load(tensor + at, mask=(places < limit)[:, None], other=0.0)


@triton.jit
def _store_rows(tensor, values, places, head, limit, HEADS: tl.constexpr, WIDTH: tl.constexpr):
    at = (places.to(tl.int64) * HEADS + head)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(tensor + at, values.to(tensor.dtype.element_ty), mask=(places < limit)[:, None])


@triton.jit
def _furthest_back(first, places, tokens, window, WINDOW: tl.constexpr):
    """The first key that each query sees; past the axis, none."""
    begin = tl.load(first + places, mask=places < tokens, other=tokens)
    if WINDOW:
        begin = tl.maximum(begin, tl.minimum(places, tokens) - window + 1)
    return begin


@triton.jit
def attention_forward(
    q, k, v, out, lse, first, tokens, window, scale2,
    HEADS: tl.constexpr, SHARING: tl.constexpr, WIDTH: tl.constexpr, WINDOW: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program a tile of QUERIES queries of one head. Grid (tiles, heads)."""
    tile, head = tl.program_id(0), tl.program_id(1)
    at = tile * QUERIES + tl.arange(0, QUERIES)
    begin = _furthest_back(first, at, tokens, window, WINDOW)
    query = _rows(q, at, head, tokens, HEADS, WIDTH)
    most = tl.full((QUERIES,), NEVER, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    gathered = tl.zeros((QUERIES, WIDTH), tl.float32)
    for start in range(tl.min(begin), tl.minimum(tile * QUERIES + QUERIES, tokens), KEYS):
        keys = start + tl.arange(0, KEYS)
        key = _rows(k, keys, head // SHARING, tokens, HEADS // SHARING, WIDTH)
        scores = tl.dot(query, tl.trans(key)) * scale2
        seen = (keys[None, :] <= at[:, None]) & (keys[None, :] >= begin[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        shares = tl.exp2(scores - higher[:, None])
        kept = tl.exp2(most - higher)
        total = total * kept + tl.sum(shares, 1)
        value = _rows(v, keys, head // SHARING, tokens, HEADS // SHARING, WIDTH)
        gathered = tl.dot(shares.to(value.dtype), value, gathered * kept[:, None])
        most = higher
    _store_rows(out, gathered / total[:, None], at, head, tokens, HEADS, WIDTH)
    tl.store(lse + head.to(tl.int64) * tokens + at, most + tl.log2(total), mask=at < tokens)


@triton.jit
def queries_backward(
    q, k, v, out, grad, lse, delta, dq, first, tokens, window, scale, scale2,
    HEADS: tl.constexpr, SHARING: tl.constexpr, WIDTH: tl.constexpr, WINDOW: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries, and `delta` = sum(out x its gradient) of each. Grid (tiles, heads)."""
    tile, head = tl.program_id(0), tl.program_id(1)
    at = tile * QUERIES + tl.arange(0, QUERIES)
    begin = _furthest_back(first, at, tokens, window, WINDOW)
    query = _rows(q, at, head, tokens, HEADS, WIDTH)
    upper = _rows(grad, at, head, tokens, HEADS, WIDTH)
    output = _rows(out, at, head, tokens, HEADS, WIDTH)
    own = tl.sum(output.to(tl.float32) * upper.to(tl.float32), 1)
    tl.store(delta + head.to(tl.int64) * tokens + at, own, mask=at < tokens)
    sums = tl.load(lse + head.to(tl.int64) * tokens + at, mask=at < tokens, other=0.0)
    gathered = tl.zeros((QUERIES, WIDTH), tl.float32)
    for start in range(tl.min(begin), tl.minimum(tile * QUERIES + QUERIES, tokens), KEYS):
        keys = start + tl.arange(0, KEYS)
        key = _rows(k, keys, head // SHARING, tokens, HEADS // SHARING, WIDTH)
        value = _rows(v, keys, head // SHARING, tokens, HEADS // SHARING, WIDTH)
        scores = tl.dot(query, tl.trans(key)) * scale2
        seen = (keys[None, :] <= at[:, None]) & (keys[None, :] >= begin[:, None])
        shares = tl.where(seen, tl.exp2(scores - sums[:, None]), 0.0)
        slope = shares * (tl.dot(upper, tl.trans(value)) - own[:, None])
        gathered = tl.dot(slope.to(key.dtype), key, gathered)
    _store_rows(dq, gathered * scale, at, head, tokens, HEADS, WIDTH)


@triton.jit
def keys_backward(
    q, k, v, grad, lse, delta, dk, dv, first, last, tokens, window, scale, scale2,
    HEADS: tl.constexpr, SHARING: tl.constexpr, WIDTH: tl.constexpr, WINDOW: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys and values, over all heads that share them. Grid (tiles, key-value heads)."""
    tile, shared = tl.program_id(0), tl.program_id(1)
    keys = tile * KEYS + tl.arange(0, KEYS)
    key = _rows(k, keys, shared, tokens, HEADS // SHARING, WIDTH)
    value = _rows(v, keys, shared, tokens, HEADS // SHARING, WIDTH)
    end = tl.load(last + keys, mask=keys < tokens, other=0)
    if WINDOW:
        end = tl.minimum(end, keys + window)
    tiles = tl.cdiv(tl.max(end) - tile * KEYS, QUERIES)
    key_sums = tl.zeros((KEYS, WIDTH), tl.float32)
    value_sums = tl.zeros((KEYS, WIDTH), tl.float32)
    for step in range(tiles * SHARING):
        head = shared * SHARING + step // tiles
        at = tile * KEYS + (step % tiles) * QUERIES + tl.arange(0, QUERIES)
        query = _rows(q, at, head, tokens, HEADS, WIDTH)
        upper = _rows(grad, at, head, tokens, HEADS, WIDTH)
        sums = tl.load(lse + head.to(tl.int64) * tokens + at, mask=at < tokens, other=0.0)
        own = tl.load(delta + head.to(tl.int64) * tokens + at, mask=at < tokens, other=0.0)
        scores = tl.dot(key, tl.trans(query)) * scale2
        seen = (at[None, :] >= keys[:, None]) & (at[None, :] < end[:, None])
        shares = tl.where(seen, tl.exp2(scores - sums[None, :]), 0.0)
        value_sums = tl.dot(shares.to(upper.dtype), upper, value_sums)
        slope = shares * (tl.dot(value, tl.trans(upper)) - own[None, :])
        key_sums = tl.dot(slope.to(query.dtype), query, key_sums)
    _store_rows(dk, key_sums * scale, keys, shared, tokens, HEADS // SHARING, WIDTH)
    _store_rows(dv, value_sums, keys, shared, tokens, HEADS // SHARING, WIDTH)
