"""A frozen linear layer and its low-rank update in one: y = x W' + bias + s (x A') B', its gradients by hand.

Part of the adapters' arithmetic (`patch/fused_lora.py` puts it into peft's layers). Written one after the other, the update
is a tensor as large as the output that is scaled and added, there and again for the gradient of the input: at rank 16 that
moves more bytes than the layer itself. Here the update is written where the output is to be, the layer's own product is added
to it in place, and the scale is put on the narrow side. The other way round would move as many bytes; so the product of rank r,
which is bound by memory, only writes, and the wide one, which is bound by arithmetic, reads what it adds to. A layer with a bias
has its own product first: beside a large bias, which that product may take back, bf16 would round the update away.

    forward     h = s x A'      y = h B'            y += x W'       with a bias: y = x W' + bias, y += h B'
    backward    g = s dy B      dx = g A            dx += dy W      dB = dy' h      dA = g' x
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


@torch.library.custom_op("dumbo::add_product", mutates_args=("out",))
def add_product(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """out (N, M) += left (N, K) @ right (K, M), in place: torch.addmm would first copy `out`."""
    out.addmm_(left, right)


@add_product.register_fake
def _(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    return None


class _LowRank(torch.autograd.Function):
    """All tensors in one dtype; W and bias without gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        narrow = (rows @ down.t()) * scale
        if bias is None:
            out = narrow @ up.t()
            add_product(out, rows, weight.t())
        else:
            out = functional.linear(rows, weight, bias)
            add_product(out, narrow, up.t())
        ctx.save_for_backward(rows, narrow, weight, down, up)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, narrow, weight, down, up = ctx.saved_tensors
        (to_out,) = gradients
        to_narrow = (to_out @ up) * ctx.scale
        to_rows = None
        if ctx.needs_input_grad[0]:
            to_rows = to_narrow @ down
            add_product(to_rows, to_out, weight)
        to_down = to_narrow.t() @ rows if ctx.needs_input_grad[3] else None
        to_up = to_out.t() @ narrow if ctx.needs_input_grad[4] else None
        return to_rows, None, None, to_down, to_up, None


def low_rank_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    down: torch.Tensor,
    up: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """x W' + bias + scale (x A') B'.

    Args:
        x: (..., K).
        weight: (M, K) W, frozen; bias: (M,), frozen, or None.
        down: (r, K) A. up: (M, r) B.

    Returns:
        (..., M), in the dtype of the arithmetic: autocast's where that is on, else that of W.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    with torch.autocast(kind, enabled=False):
        out: torch.Tensor = _LowRank.apply(
            rows, weight.to(dtype), None if bias is None else bias.to(dtype), down.to(dtype), up.to(dtype), scale
        )  # fmt: skip
    return out.reshape(*x.shape[:-1], out.shape[-1])
