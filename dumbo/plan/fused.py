"""What compiled parts of a model keep, for a rehearsal that runs them uncompiled.

torch.compile's partitioner keeps what matrix products and attention made, and makes what is cheap (norms, activation
functions, casts) again in the backward pass: torch's selective checkpointing with that rule keeps the same.
https://docs.pytorch.org/docs/stable/checkpoint.html#torch.utils.checkpoint.create_selective_checkpoint_contexts
A compiled chunk of the loss holds its logits once, and their gradient, in the dtype that the head computes in.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

KEPT = ("mm", "addmm", "bmm", "_scaled_dot_product", "_flash_attention", "_efficient_attention", "_varlen_attn")
"""Beginnings of names of operations whose results are kept."""


def keep_as_compiled(layer: torch.nn.Module) -> None:
    """A decoder layer that keeps in its forward pass what it would keep compiled. One that is checkpointed stays so."""
    if getattr(layer, "gradient_checkpointing", False):
        return
    own = layer.forward

    def forward(*arguments: Any, **kwargs: Any) -> Any:
        policy = partial(_policy, arguments[0].shape[-1])
        contexts = partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(own, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=contexts, **kwargs)

    layer.forward = forward


def _policy(width: int, context: Any, operation: Any, *arguments: Any, **kwargs: Any) -> CheckpointPolicy:
    """Products are kept, but for the one that leads from the inner width back to the layer's: only a sum comes after it.

    Args:
        width: of the layer's input and output.
    """
    name = str(operation).split(".")[1]
    if name == "mm" and arguments[1].shape[-1] == width < arguments[0].shape[-1]:
        return CheckpointPolicy.PREFER_RECOMPUTE
    return CheckpointPolicy.MUST_SAVE if name.startswith(KEPT) else CheckpointPolicy.PREFER_RECOMPUTE


def fused_chunk_loss(head: Any, softcap: float | None, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """In the place of `trainer.chunks.chunk_loss`: the same shapes, no numbers."""
    found: torch.Tensor = _Fused.apply(head(hidden))
    return found


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits)
        return torch.empty((), device=logits.device)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (logits,) = ctx.saved_tensors
        return torch.empty_like(logits)
