"""Attention within each document in one kernel: torch's own variable-length flash attention, for packs on a GPU.

What `attention.py` does group by group, without gathering. It is part of torch since 2.10 (no other package), needs
an Ampere GPU or newer and computes in bf16 or fp16; everything else takes the groups. torch.compile traces through all
of it without a break: what asks the device is a constant to it.
https://docs.pytorch.org/docs/stable/nn.attention.varlen.html
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn

WIDEST_HEAD = 256
"""Flash attention's widest head."""
GROUPED_QUERIES: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
)
"""The argument that newer versions of it want where several queries share a key."""


def usable(query: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    """Whether the kernel can take these tensors, (1, heads, T, width) each."""
    return (
        query.device.type == "cuda"
        and dropout == 0
        and query.shape[-1] == value.shape[-1] <= WIDEST_HEAD
        and query.shape[-1] % 8 == 0
        and arithmetic(value) in (torch.bfloat16, torch.float16)
        and _has_kernel(query.device.index or 0)  # last: asks the device
    )


def arithmetic(value: torch.Tensor) -> torch.dtype:
    """The dtype in which attention is computed here: autocast's where that is on, else the values' own."""
    kind = value.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype


@torch.compiler.assume_constant_result
def _has_kernel(device: int) -> bool:
    return _capability(device) >= (8, 0)


@functools.cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def on_one_axis(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> list[torch.Tensor]:
    """(1, heads, T, width) each -> (T, heads, width), contiguous, in the dtype of the arithmetic."""
    dtype = arithmetic(value)
    return [tensor[0].transpose(0, 1).to(dtype).contiguous() for tensor in (query, key, value)]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    window: int | None,
    scale: float | None,
) -> torch.Tensor:
    """Causal attention within documents.

    Args:
        query: (1, heads, T, width); key and value: (1, key-value heads, T, width).
        bounds: (documents + 1,) int32, where each document begins.
        longest: tokens of the longest document.
        window: tokens that a token may look back to, itself included; None: all.
        scale: of the scores; None: one over the root of the width.

    Returns:
        (1, T, heads, width), in the dtype of the arithmetic.
    """
    q, k, v = on_one_axis(query, key, value)
    back = -1 if window is None or window >= longest else window - 1
    out: Any = varlen_attn(
        q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=(back, 0), **GROUPED_QUERIES
    )
    return out[None]
