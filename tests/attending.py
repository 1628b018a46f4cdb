"""Attention within documents computed anew: one document after the other, a softmax over its keys in float64."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch


def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: Sequence[int], window: int = 0) -> torch.Tensor:
    """(T, heads, width) from q (T, heads, width), k and v (T, key-value heads, width); documents begin at `starts`."""
    shared = q.shape[1] // k.shape[1]
    parts = []
    for start, end in pairwise([*starts, len(q)]):
        if end == start:
            continue
        queries, keys, values = (
            tensor[start:end].double().repeat_interleave(times, 1)
            for tensor, times in ((q, 1), (k, shared), (v, shared))
        )
        scores = torch.einsum("ihd,jhd->hij", queries, keys) / q.shape[-1] ** 0.5
        back = torch.arange(end - start)[:, None] - torch.arange(end - start)[None, :]
        hidden = (back < 0) | ((back >= window) if window else torch.zeros_like(back, dtype=torch.bool))
        scores = scores.masked_fill(hidden.to(scores.device), float("-inf"))
        parts.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), values))
    return torch.cat(parts)


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest distance, relative to the largest number wanted, or to 1 where all are smaller."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))
