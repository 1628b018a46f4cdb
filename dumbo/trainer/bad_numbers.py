"""A loss or gradient that is not finite ends the run, and the documents that were in the batch are named.

Losses stay where they are computed: they are looked at one by one only when the sum that is logged anyway is not
finite, so that nothing waits for a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dumbo.errors import RunFailed
from dumbo.prepare.store import Store

NAMED = 8
"""So many documents are named in the error, the others counted."""


@dataclass(frozen=True)
class _MicroBatch:
    step: int
    documents: NDArray[np.int64]
    loss: torch.Tensor


@dataclass
class Watch:
    """The micro batches since the last logged step.

    Args:
        store: says where a document comes from.
        run: the run's folder, for the remedy.
    """

    store: Store
    run: Path
    _seen: list[_MicroBatch] = field(default_factory=list)

    def add(self, step: int, documents: NDArray[np.int64], loss: torch.Tensor) -> None:
        """A micro batch of step `step` (from 1) gave this loss (a scalar, detached)."""
        self._seen.append(_MicroBatch(step, documents, loss))

    def check(self, loss: float, grad_norm: float | None) -> None:
        """At a logged step: its mean loss and last gradient norm.

        Raises:
            RunFailed: one of them is not finite.
        """
        seen, self._seen = self._seen, []
        if not math.isfinite(loss):
            bad = next((batch for batch in seen if not bool(torch.isfinite(batch.loss))), seen[-1])
            raise RunFailed(self._told(f"The loss is {float(bad.loss)}", bad.step, [bad]))
        if grad_norm is not None and not math.isfinite(grad_norm):
            last = [batch for batch in seen if batch.step == seen[-1].step]
            raise RunFailed(self._told(f"The gradient norm is {grad_norm}", seen[-1].step, last))

    def _told(self, what: str, step: int, batches: list[_MicroBatch]) -> str:
        documents = np.concatenate([batch.documents for batch in batches]).tolist()
        named = [str(self.store.source(document)) for document in documents[:NAMED]]
        more = f" and {len(documents) - NAMED} more" if len(documents) > NAMED else ""
        return (
            f"{what} at step {step}; going on would train on broken numbers.\n"
            f"  in the batch: {'; '.join(named)}{more}\n"
            "  Look at these rows; else lower trainer.lr, lengthen trainer.warmup_steps, or write trainer.precision=fp32. "
            f"Checkpoints written before are whole: resume={self.run}"
        )
