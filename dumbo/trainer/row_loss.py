"""The loss of a chunk by a kernel of our own (`loss_kernel.py`), in the place of `chunks.chunk_loss` on a GPU.

Used by `chunks.py`, put there by `patch/chunked_loss.py`. The gradients of the logits come with the loss and lie
where the logits lay: of a chunk there is one tensor of C x vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from dumbo.interfaces import IGNORE

WIDE = 65_536
"""Tokens above which a vocabulary is cut as one of 128 k."""


def cut(vocabulary: int) -> tuple[int, int]:
    """Logits that a program takes at a time, and its warps: of twelve cuts the fastest on an H200, for 49 k tokens and for 128 k
    (`benchmarks.loss --tune`).
    """
    return (32768, 32) if vocabulary > WIDE else (16384, 16)


class RowLoss:
    """A `ChunkLoss` whose gradients come with it."""

    def __call__(self, head: Any, softcap: float | None, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """As `chunks.chunk_loss`, without gradients."""
        logits = head(hidden).detach()
        return self.rows(_in_rows(logits), targets, softcap, gradients=False).sum()

    def with_gradients(
        self,
        head: Any,
        softcap: float | None,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        leaves: list[torch.Tensor],
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The sum of the losses, and its gradients by `leaves` (zeros where one has no part).

        Args:
            head, softcap, hidden, targets: as `chunks.chunk_loss`; `hidden` is one of the leaves where it wants a gradient.
        """
        with torch.enable_grad():
            logits = head(hidden)
        with torch.no_grad():
            gradients = _in_rows(logits.detach())
            losses = self.rows(gradients, targets, softcap, gradients=True)
            torch.autograd.graph.increment_version(gradients)  # a head that needs its own output again is told of it
        with torch.autocast(hidden.device.type, enabled=False):
            found = torch.autograd.grad(logits, leaves, gradients, allow_unused=True, materialize_grads=True)
        return losses.sum(), found

    def rows(
        self, logits: torch.Tensor, targets: torch.Tensor, softcap: float | None, *, gradients: bool
    ) -> torch.Tensor:
        """(C,) float32, each row's loss; with `gradients` the (C, vocabulary) logits become the gradients of their sum."""
        from dumbo.trainer.loss_kernel import row_losses

        rows, vocabulary = logits.shape
        block, warps = cut(vocabulary)
        losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
        row_losses[(rows,)](
            logits, targets, losses, logits.stride(0), vocabulary, softcap or 1.0,
            IGNORE=IGNORE, CAPPED=softcap is not None, GRADIENT=gradients, BLOCK=block, num_warps=warps,
        )  # fmt: skip
        return losses


def _in_rows(logits: torch.Tensor) -> torch.Tensor:
    """As the kernel reads them, one beside the other; a copy where they are not."""
    return logits if logits.stride(1) == 1 else logits.contiguous()
