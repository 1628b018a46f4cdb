"""Attention that keeps packed documents apart, through torch's scaled_dot_product_attention.

transformers passes `cu_seq_lens_q`, where each document begins on the one token axis, down to the attention. Here
the documents are gathered into batches of like length (right-padded; causal attention never looks right), attended
to with the library's own SDPA function, and put back. No mask of T x T exists, sliding windows hold within each
document, and no document can see another. Without `cu_seq_lens_q` (generation, padded batches) it is plain SDPA.

Registered with transformers' public AttentionInterface under the name `isolated`.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

NAME = "isolated"
PADDING_ALLOWED = 1.15
"""Documents are batched together while padding adds no more than this factor."""


@dataclass(frozen=True)
class _Group:
    """Documents attended to in one call.

    Attributes:
        take: (n, L) token positions, the last one repeated past a document's end.
        real: (m,) which of the n * L places are tokens; None: all.
        put: (m,) the positions of those tokens.
    """

    take: torch.Tensor
    real: torch.Tensor | None
    put: torch.Tensor


_last: tuple[weakref.ref[torch.Tensor], list[_Group]] | None = None


def register() -> None:
    """Makes `attn_implementation="isolated"` known to transformers. May be called any number of times."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
        """No mask for packs (none is given); the usual one where a padding mask is."""
        usual: Any = sdpa_mask
        return None if attention_mask is None else usual(*args, attention_mask=attention_mask, **kwargs)

    AttentionInterface.register(NAME, isolated_attention)
    AttentionMaskInterface.register(NAME, mask)


def isolated_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each document.

    Args:
        query: (1, heads, T, width); key and value: (1, key-value heads, T, width).
        cu_seq_lens_q: (documents + 1,) where each document begins; None: plain SDPA with `attention_mask`.
        sliding_window: tokens that a token may look back to, itself included.

    Returns:
        (1, T, heads, width).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    for name in ("cu_seq_lens_k", "max_length_q", "max_length_k", "position_ids", "use_cache"):
        kwargs.pop(name, None)
    by_token = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # (T, heads, width)
    result = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
    outputs, places = [], []
    for group in _plan(cu_seq_lens_q):
        q, k, v = (tensor[group.take].transpose(1, 2) for tensor in by_token)  # (n, heads, L, width)
        out, _ = sdpa_attention_forward(module, q, k, v, _window(q.shape[2], sliding_window, q.device), **kwargs)
        out = out.flatten(0, 1)  # (n * L, heads, width)
        outputs.append(out if group.real is None else out[group.real])
        places.append(group.put)
    result = result.index_copy(0, torch.cat(places), torch.cat(outputs).to(result.dtype))
    return result[None], None


def _window(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """(1, 1, L, L) which pairs see each other under a sliding window; None where it reaches all of a document."""
    if window is None or length <= window:
        return None
    at = torch.arange(length, device=device)
    back = at[:, None] - at[None, :]
    return ((back >= 0) & (back < window))[None, None]


def _plan(cu_seq_lens: torch.Tensor) -> list[_Group]:
    """The groups of a batch, made once and kept while the same tensor comes again (every layer, and recomputation)."""
    global _last
    if _last is not None and _last[0]() is cu_seq_lens:
        return _last[1]
    groups = _groups(cu_seq_lens.tolist(), cu_seq_lens.device)
    _last = (weakref.ref(cu_seq_lens), groups)
    return groups


def _groups(bounds: list[int], device: torch.device) -> list[_Group]:
    """Documents of like length together, longest first."""
    documents = sorted(((end - start, start) for start, end in pairwise(bounds) if end > start), reverse=True)
    groups: list[_Group] = []
    batch: list[tuple[int, int]] = []
    total = 0
    for length, start in documents:
        if batch and batch[0][0] * (len(batch) + 1) > PADDING_ALLOWED * (total + length):
            groups.append(_group(batch, device))
            batch, total = [], 0
        batch.append((length, start))
        total += length
    if batch:
        groups.append(_group(batch, device))
    return groups


def _group(documents: list[tuple[int, int]], device: torch.device) -> _Group:
    longest = documents[0][0]
    lengths = np.array([length for length, _ in documents])
    starts = np.array([start for _, start in documents])
    steps = np.arange(longest)
    take = starts[:, None] + np.minimum(steps[None, :], lengths[:, None] - 1)
    inside = steps[None, :] < lengths[:, None]
    real = None if inside.all() else torch.from_numpy(np.flatnonzero(inside)).to(device)
    return _Group(torch.from_numpy(take).to(device), real, torch.from_numpy(take[inside]).to(device))
