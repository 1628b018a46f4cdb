"""Batch, steps and tokens of a run, from its prepared data: what training is going to do, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dumbo.batch import Batch
from dumbo.plan.longest import examples_of
from dumbo.trainer.sampler import GlobalBatches

if TYPE_CHECKING:
    from dumbo.prepare.store import PreparedSplits
    from dumbo.trainer.collate import Examples


@dataclass(frozen=True)
class Arithmetic:
    """What is trained on.

    Attributes:
        batch: global, micro, ranks, accumulation.
        examples: packs, or documents, of an epoch.
        epoch_steps: optimizer steps of an epoch.
        steps: of the run.
        tokens, trained_tokens: of the run, real ones only; on average where the run ends inside an epoch.
        documents: of a step, on average.
        filled: share of the packs' room that holds tokens; None: not packed.
    """

    batch: Batch
    examples: int
    epoch_steps: int
    steps: int
    tokens: int
    trained_tokens: int
    documents: float
    filled: float | None

    @property
    def epochs(self) -> float:
        return self.steps / self.epoch_steps


def arithmetic(trainer: Any, data: PreparedSplits, batch: Batch, examples: Examples | None = None) -> Arithmetic:
    """Of `trainer` on this data.

    Args:
        examples: what is trained on; None: it is packed here.
    """
    examples = examples if examples is not None else examples_of(trainer, data)
    epoch_steps = GlobalBatches(len(examples), batch, trainer.seed).steps()
    steps = trainer.max_steps or epoch_steps * trainer.num_epochs
    passes = steps / epoch_steps
    return Arithmetic(
        batch,
        len(examples),
        epoch_steps,
        steps,
        round(data.train.tokens * passes),
        round(data.train.trained_tokens * passes),
        len(data.train) / epoch_steps,
        examples.packs.filled if examples.packs is not None else None,
    )
