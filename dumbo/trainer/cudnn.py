"""cuDNN's attention over rows, through torch's operators for it, and whether it is to be had and right.

Called by `long_attention.py`. They are those that scaled_dot_product_attention itself calls; it does not give away the
logarithms of softmax's sums, which gradients need. Before the first use they are tried on random numbers against attention in
float32, laid out as packs are. https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html
"""

from __future__ import annotations

import functools
import warnings

import torch

MEASURED_FROM = (9, 0)
"""Compute capability of the GPUs on which it is measured to be faster; of newer ones it is assumed."""
TRIED = 4096
"""Tokens of the trial: of the shortest document that goes through cuDNN."""
APART = 2e-2
"""How far the trial may be from float32, relatively: bf16 has 8 bits."""


def attend_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of rows in cuDNN: the output (B, heads, L, width), and the logarithms of sums (B, heads, L, 1).

    Args:
        q: (B, heads, L, width); k and v: (B, key-value heads, L, width).

    Raises:
        RuntimeError: cuDNN has no plan for it; torch.OutOfMemoryError, which is one.
    """
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True, False, scale=scale)
    return found[0], found[1]


def attend_rows_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k and v, shaped like them; arguments and errors are those of `attend_rows` and what it returned."""
    seed = torch.zeros((2,), dtype=torch.int64, device=q.device)  # of dropout, of which there is none
    length = q.shape[2]
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = (
        torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            grad, q, k, v, out, lse, seed[0], seed[1], None, None, None, length, length, 0.0, True, scale=scale
        )
    )
    return found


def lacking() -> str | None:
    """Why no long document goes through cuDNN now."""
    if torch.are_deterministic_algorithms_enabled():
        return "its gradients are not the same bits each time"
    return _lacking_here()


def _lacking_here() -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.cuda.get_device_capability() < MEASURED_FROM:
        return f"not measured on {torch.cuda.get_device_name()}"
    if not torch.backends.cudnn.is_available() or not torch.backends.cuda.cudnn_sdp_enabled():
        return "torch has no cuDNN, or its attention is switched off"
    return None


@functools.cache
def why_not(heads: int, shared: int, width: int, dtype: torch.dtype, device: int) -> str | None:
    """Why long documents of such heads do not go through cuDNN; tried once, against attention in float32.

    Args:
        shared: key-value heads.

    Raises:
        torch.OutOfMemoryError: nothing is known then.
    """
    if (reason := _lacking_here()) is not None:
        return reason
    reason = _tried(heads, shared, width, dtype, torch.device("cuda", device))
    torch.cuda.empty_cache()  # the launcher of several ranks may have tried it, and keeps nothing
    if reason is not None:
        warnings.warn(f"long documents go through tiles: {reason}", stacklevel=2)
    return reason


def _tried(heads: int, shared: int, width: int, dtype: torch.dtype, where: torch.device) -> str | None:
    numbers = torch.Generator(where).manual_seed(0)
    q, k, v, grad = (
        torch.randn(1, TRIED, n, width, device=where, generator=numbers).to(dtype).transpose(1, 2)  # as packs lie
        for n in (heads, shared, shared, heads)
    )
    scale = width**-0.5
    try:
        out, lse = attend_rows(q, k, v, scale)
        found = (out, *attend_rows_backward(grad, q, k, v, out, lse, scale))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:  # it has no plan for such heads
        return f"cuDNN: {str(error).splitlines()[0]}"
    pairs = zip(found, _written_down(q, k, v, grad, scale), strict=True)
    apart = [float((one.float() - other).norm() / other.norm()) for one, other in pairs]
    wrong = [distance for distance in apart if not distance <= APART]  # a NaN is wrong too
    return f"cuDNN's attention is {wrong[0]:.1g} from that in float32" if wrong else None


def _written_down(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output and gradients of causal attention in float32, a head at a time, without autograd: an operator's inside has none."""
    sharing, length = q.shape[1] // k.shape[1], q.shape[2]
    out, dq, dk, dv = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (q, q, k, v))
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    with torch.autocast(q.device.type, enabled=False):
        for head in range(q.shape[1]):
            of = head // sharing
            some, keys, values, its = q[:, head].float(), k[:, of].float(), v[:, of].float(), grad[:, head].float()
            weights = (some @ keys.transpose(1, 2) * scale).masked_fill(later, -torch.inf).softmax(-1)
            of_weights = its @ values.transpose(1, 2)
            of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scale
            out[:, head], dq[:, head] = weights @ values, of_scores @ keys
            dk[:, of] += of_scores.transpose(1, 2) @ some
            dv[:, of] += weights.transpose(1, 2) @ its
    return out, dq, dk, dv
