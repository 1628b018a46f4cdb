"""A loss or gradient that is not finite never reaches the weights; the documents that were in the batch are named.

    backward of each micro batch   a loss that is not finite poisons its own gradient (x NaN), so that the norm over all
                                   ranks tells of every bad loss and every bad gradient
    before the optimizer's step    the norm stays where it was computed; a fused optimizer skips on the device, as it
                                   does for loss scaling; another one loses its gradients, after a look at the norm
    at the next logged step        the norms are looked at together: bad steps are counted and named

After `max_bad_steps` in a row, weights and optimizer go back to the last checkpoint while data and schedule go on (the
same data would do the same again); when that happens a second time, the run ends with a report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dumbo.launch.world import World
from dumbo.prepare.store import Store
from dumbo.trainer.skipping import skips_on_device

NAMED = 8
"""So many documents are named, the others counted."""


@dataclass(frozen=True)
class _MicroBatch:
    step: int
    documents: NDArray[np.int64]
    loss: torch.Tensor


@dataclass(frozen=True)
class Taken:
    """Of some steps.

    Attributes:
        micro: their micro batches.
        steps, norms: of each step its number (from 1) and the gradient norm, on the device or not.
    """

    micro: list[_MicroBatch]
    steps: list[int]
    norms: list[Any]


@dataclass(frozen=True)
class BadStep:
    """A step that was skipped.

    Attributes:
        step: from 1.
        what: "the loss is nan", "the gradient norm is inf".
        documents: file and line of what was in the batch.
    """

    step: int
    what: str
    documents: str

    def __str__(self) -> str:
        return f"step {self.step} is skipped: {self.what}\n  in the batch: {self.documents}"


@dataclass
class Watch:
    """The steps since the last logged one.

    Args:
        store: says where a document comes from.
        world: the ranks; a norm is the same on all of them, a loss is of one.
        run: the run's folder, for the remedy.
    """

    store: Store
    world: World
    run: Path
    in_a_row: int = 0
    _micro: list[_MicroBatch] = field(default_factory=list)
    _norms: list[tuple[int, Any]] = field(default_factory=list)

    def add(self, step: int, documents: NDArray[np.int64], loss: torch.Tensor) -> None:
        """A micro batch of step `step` (from 1) gave this loss (a scalar, detached)."""
        self._micro.append(_MicroBatch(step, documents, loss))

    def forget(self, step: int) -> None:
        """The step is done once more from its beginning."""
        self._micro = [batch for batch in self._micro if batch.step != step]

    def guard(self, step: int, norm: Any, optimizer: torch.optim.Optimizer) -> None:
        """Just before the optimizer's step: it is going to change nothing where the norm is not finite."""
        self._norms.append((step, norm))
        on_device = isinstance(norm, torch.Tensor) and type(norm) is torch.Tensor
        if on_device and skips_on_device(optimizer):
            # What torch's GradScaler does to a fused optimizer: https://docs.pytorch.org/docs/stable/amp.html
            optimizer.found_inf = (~torch.isfinite(norm)).float().reshape(())  # type: ignore[attr-defined]
        elif not math.isfinite(float(norm)):
            optimizer.zero_grad(set_to_none=True)

    def take(self) -> Taken:
        """What there is since the last time, which is then forgotten here."""
        taken = Taken(self._micro, [step for step, _ in self._norms], [norm for _, norm in self._norms])
        self._micro, self._norms = [], []
        return taken

    def look(self) -> tuple[list[BadStep], float | None]:
        """`judge` of what there is, for which all norms are read now."""
        taken = self.take()
        return self.judge(taken, _numbers(taken.norms))

    def judge(self, taken: Taken, norms: Sequence[float]) -> tuple[list[BadStep], float | None]:
        """Skipped steps, and the mean loss of the others (None: none is left).

        The mean is only computed when a step was skipped; it is over all ranks.

        Args:
            norms: those of `taken`, as numbers.
        """
        micro = taken.micro
        bad = []
        for step, norm in zip(taken.steps, norms, strict=True):
            if math.isfinite(norm):
                self.in_a_row = 0
            else:
                self.in_a_row += 1
                bad.append((step, norm))
        if not bad:
            return [], None
        skipped = {step for step, _ in bad}
        good = [number for number in taken.steps if number not in skipped]
        sums = torch.tensor([sum(float(b.loss) for b in micro if b.step == step) for step in good], dtype=torch.float64)
        mean = float(self.world.total(sums).mean() / self.world.size) if good else None
        return [self._named(step, norm, [b for b in micro if b.step == step]) for step, norm in bad], mean

    def _named(self, step: int, norm: float, own: list[_MicroBatch]) -> BadStep:
        """Rare: the ranks tell each other which documents they had."""
        losses = [(float(batch.loss), self._texts(batch.documents)) for batch in own]
        everyones = [pair for told in self.world.gather(losses) for pair in told]
        culprits = [pair for pair in everyones if not math.isfinite(pair[0])]
        texts = [text for _, batch in (culprits or everyones) for text in batch]
        more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
        what = f"the loss is {culprits[0][0]}" if culprits else f"the gradient norm is {norm}"
        return BadStep(step, what, "; ".join(texts[:NAMED]) + more)

    def _texts(self, documents: NDArray[np.int64]) -> list[str]:
        return [str(self.store.source(document)) for document in documents.tolist()]


class _Poison(torch.autograd.Function):
    """Identity; backward x 1 exactly, or x NaN where the value is not finite."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(loss)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (loss,) = ctx.saved_tensors
        return gradients[0] * (loss - loss + 1.0)


def poisoned(loss: torch.Tensor) -> torch.Tensor:
    """The loss itself; where it is not finite its gradient is NaN, even if it were not so. No transfer from the device."""
    found: torch.Tensor = _Poison.apply(loss)
    return found


def _numbers(values: list[Any]) -> list[float]:
    """One transfer for all of them."""
    if values and all(type(value) is torch.Tensor for value in values):
        return [
            float(number) for number in torch.stack([value.detach().float().reshape(()) for value in values]).tolist()
        ]
    return [float(value) for value in values]
