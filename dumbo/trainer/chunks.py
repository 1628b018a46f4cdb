"""Output head and cross-entropy in one, over chunks of tokens: all logits are never held at once.

Part of the engine's loss (`patch/chunked_loss.py` puts it into a model). Each chunk's gradients are taken right after its
loss, while its logits are there, and only scaled in the backward pass; those of the head are added up in float32. So no
chunk is computed twice, as checkpointing it would. Under FSDP2 all chunks are one call of the head: its weights are gathered
before the first and their gradients scattered after the last. The idea: Hsu et al. 2024 (arXiv:2410.10989, 3.2), in torch's own
operations here, with large chunks for any head (tied, with a bias, with an adapter).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from dumbo.interfaces import IGNORE
from dumbo.trainer.row_loss import RowLoss
from dumbo.trainer.sharded import is_sharded

ROWS_IN = 64
"""The last chunk is filled up to a multiple of so many tokens, with ones that bear no loss: matrix products like that."""

ChunkLoss = Callable[[Any, float | None, torch.Tensor, torch.Tensor], torch.Tensor]


def chunk_loss(head: Any, softcap: float | None, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum of the losses of one chunk.

    Args:
        head: the output head: a module, or what does its work.
        softcap: logits are softcap * tanh(logits / softcap) (Gemma 2); None: as they are.
        hidden: (C, H) what the head is given.
        targets: (C,) the token that should follow; -100: no loss.
    """
    logits = head(hidden).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")


def summed_loss(
    head: Any,
    softcap: float | None,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    at: torch.Tensor | None,
    size: int,
    of_chunk: ChunkLoss = chunk_loss,
) -> torch.Tensor:
    """Sum of all tokens' losses, a float32 scalar.

    Args:
        head, softcap: see `chunk_loss`.
        hidden: (N, H).
        targets: (N,).
        at: (n,) the places in N that bear a loss, each once: only these are given to the head. None: all N are.
        size: tokens a chunk.
        of_chunk: `chunk_loss`, the same compiled, or `RowLoss`.
    """
    if is_sharded(head):
        return _as_one_call(
            head, hidden, lambda own, given: _summed(head, own, softcap, given, targets, at, size, of_chunk)
        )
    return _summed(head, head, softcap, hidden, targets, at, size, of_chunk)


def _as_one_call(head: Any, hidden: torch.Tensor, work: Callable[[_Own, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """What `work` returns, done as the forward pass of a sharded head: between FSDP2's hooks, which then run once.

    Args:
        work: is given the head's own forward pass, without hooks, and what they make of `hidden`.
    """
    instead = vars(head).get("forward")  # what a patch put there, as fused_lora does
    head.forward = lambda given: work(_Own(head, instead), given)
    try:
        total: torch.Tensor = head(hidden)
    finally:
        if instead is None:
            del head.forward
        else:
            head.forward = instead
    return total


class _Own:
    """A module's forward pass without hooks: what is in its place, or as its class has it."""

    def __init__(self, module: torch.nn.Module, instead: Callable[[torch.Tensor], Any] | None) -> None:
        self.module, self.instead = module, instead

    def __call__(self, hidden: torch.Tensor) -> Any:
        if self.instead is not None:
            return self.instead(hidden)
        return type(self.module).forward(self.module, hidden)


def _summed(
    head: Any,
    own: Any,
    softcap: float | None,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    at: torch.Tensor | None,
    size: int,
    of_chunk: ChunkLoss,
) -> torch.Tensor:
    """`summed_loss` of a head that has its weights whole; `own` is called in its place."""
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    if torch.is_grad_enabled() and (hidden.requires_grad or parameters):
        total: torch.Tensor = _Chunks.apply(hidden, targets, at, own, softcap, size, of_chunk, *parameters)
        return total
    total = torch.zeros((), device=hidden.device)
    for rows, wanted in _chunks(*_picked(hidden, targets, at), size):
        total = total + of_chunk(own, softcap, rows, wanted)
    return total


class _Chunks(torch.autograd.Function):
    """The sum of the chunks' losses; its gradients are ready when it is."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        at: torch.Tensor | None,
        head: Any,
        softcap: float | None,
        size: int,
        of_chunk: ChunkLoss,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        picked, wanted = _picked(hidden, targets, at)
        total = torch.zeros((), device=hidden.device)
        to_hidden = torch.empty_like(picked) if ctx.needs_input_grad[0] else None
        to_parameters: list[torch.Tensor] = []
        begin = 0
        for rows, their_targets in _chunks(picked, wanted, size):
            leaf = rows.detach().requires_grad_(to_hidden is not None)
            leaves = [*([leaf] if to_hidden is not None else []), *parameters]
            if isinstance(of_chunk, RowLoss):
                loss, gradients = of_chunk.with_gradients(head, softcap, leaf, their_targets, leaves)
            else:
                with torch.enable_grad():
                    loss = of_chunk(head, softcap, leaf, their_targets)
                with torch.autocast(hidden.device.type, enabled=False):
                    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            found = list(gradients)
            if to_hidden is not None:
                to_hidden[begin : begin + len(rows)] = found.pop(0)
            if to_parameters:
                torch._foreach_add_(to_parameters, found)
            else:
                more = len(rows) < len(picked)  # in bf16 the sum of many chunks would lose the last ones
                to_parameters = [gradient.float() for gradient in found] if more else found
            begin += len(rows)
            total += loss.detach()
            del gradients, found  # they would lie beside the next chunk's
        if to_hidden is not None:
            to_hidden = _spread(to_hidden, hidden, at)
        ctx.gradients = (to_hidden, to_parameters)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        assert ctx.gradients is not None, "the gradients of a chunked loss are scaled in place: they can be taken once"
        (to_hidden, to_parameters), ctx.gradients = ctx.gradients, None
        ready = [*([to_hidden] if to_hidden is not None else []), *to_parameters]
        for gradient in ready:
            gradient.mul_(gradients[0])
        return (to_hidden, *[None] * 6, *to_parameters)


def _picked(hidden: torch.Tensor, targets: torch.Tensor, at: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(R, H) rows that are given to the head and their (R,) targets, filled up with rows that bear no loss; R > 0."""
    if at is not None:
        hidden, targets = hidden.detach().index_select(0, at), targets.index_select(0, at)
    more = max(-len(hidden) % ROWS_IN, ROWS_IN * (len(hidden) == 0))
    if more:
        hidden = functional.pad(hidden.detach(), (0, 0, 0, more))
        targets = functional.pad(targets, (0, more), value=IGNORE)
    return hidden.detach(), targets


def _chunks(picked: torch.Tensor, targets: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Chunks of `size` rows; the last one may be shorter. Any number of rows takes the same compiled code."""
    found = list(zip(picked.split(size), targets.split(size), strict=True))
    for tensors in found:
        for tensor in tensors:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return found


def _spread(to_picked: torch.Tensor, hidden: torch.Tensor, at: torch.Tensor | None) -> torch.Tensor:
    """Gradients of the rows that were given to the head, at their places: (N, H)."""
    if at is None:
        return to_picked[: len(hidden)]
    return torch.zeros_like(hidden).index_copy_(0, at, to_picked[: len(at)])
