"""Passes through a trainer's model for the proofs: logits of a batch, and losses computed from them by hand.

By hand: log_softmax in float32 of the logits the model gives without labels, nothing of the trainer's or the model's own
loss. Each pass leaves the model as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dumbo.interfaces import IGNORE
from dumbo.patch.compile import as_written
from dumbo.patch.modules import base_of
from dumbo.trainer.collate import leave_documents_free
from dumbo.verify.no_dropout import without_dropout
from dumbo.verify.proof import Tolerance, rms_tolerance
from dumbo.verify.quick import untouched

if TYPE_CHECKING:
    from dumbo.trainer.engine import Engine
    from dumbo.verify.subject import Subject

NOT_THE_MODELS = ("documents", "labels", "loss_at")
"""Of a batch: for the trainer or the loss, not for logits."""


def layers_of(model: Any) -> int:
    """How many layers a (text) model has."""
    config = base_of(model).config.get_text_config()
    return int(getattr(config, "num_hidden_layers", 1))


@contextmanager
def looking(engine: Engine) -> Iterator[Any]:
    """The model in evaluation mode without gradients, in the arithmetic of training; as it was afterwards."""
    with untouched(engine), torch.no_grad():
        model: Any = engine.model
        model.eval()
        yield model


@contextmanager
def training(engine: Engine) -> Iterator[Any]:
    """The model in training mode without what is random in it; gradients are gone and all is as it was afterwards."""
    model: Any = engine.model
    with untouched(engine), without_dropout(model):
        model.train()
        yield model


def logits_of(engine: Engine, batch: Mapping[str, Any], **more: Any) -> Any:
    """The model's outputs for a batch without its labels: `logits` (B, T, V)."""
    inputs = engine._prepare_inputs({name: value for name, value in batch.items() if name not in NOT_THE_MODELS})
    if engine.fixed_shapes and "cu_seq_lens_q" in inputs:
        leave_documents_free(inputs)
    model: Any = engine.model
    return model(**inputs, **more)


def next_token_losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(T - 1,) loss of each next token of one document.

    Args:
        logits: (T, V).
        ids: (T,).
    """
    chosen = torch.log_softmax(logits[:-1].float(), -1).gather(-1, ids[1:, None].to(logits.device))
    return -chosen[:, 0]


@dataclass(frozen=True)
class Alone:
    """A document by itself.

    Attributes:
        losses: (T - 1,) of its next tokens.
        scale: of what is rounded in them: root mean square of its logits, or of its losses where they are larger.
    """

    losses: torch.Tensor
    scale: float


def alone(subject: Subject, document: int) -> Alone:
    """A document of the training split by itself, unpacked and unpadded; computed once. To be called inside `looking`."""
    if document not in subject.alone:
        engine = subject.trainer
        single = replace(engine.collate, layout="padded", room=None, places=False)
        with written(engine):
            logits = logits_of(engine, single([np.array([document])])).logits[0]
        losses = next_token_losses(logits, torch.from_numpy(engine.store.ids(document)))
        subject.alone[document] = Alone(losses, max(_rms(logits), _rms(losses)))
    return subject.alone[document]


def same_losses(subject: Subject, documents: list[int], differences: list[torch.Tensor]) -> tuple[float, Tolerance]:
    """Root mean square of the differences of tokens' losses from those of the documents alone, and how much is allowed."""
    scale = float(np.mean([alone(subject, document).scale for document in documents]))
    allowed = rms_tolerance(subject.dtype, layers_of(subject.trainer.model), scale=scale, factor=2)
    return _rms(torch.cat(differences)), replace(allowed, source=f"{allowed.source}, the size of logits")


def _rms(numbers: torch.Tensor) -> float:
    return float(numbers.double().square().mean().sqrt())


def loss_sum(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """The sum of the labelled tokens' losses, by hand.

    Args:
        logits: (B, T, V).
        labels: (B, T) unshifted.
        smoothing: share of each target that is spread over the whole vocabulary.
    """
    wanted = labels[:, 1:].to(logits.device)
    bears = wanted != IGNORE
    log_probabilities = torch.log_softmax(logits[:, :-1][bears].float(), -1)
    likely = log_probabilities.gather(-1, wanted[bears][:, None]).sum()
    total: torch.Tensor = -(1 - smoothing) * likely
    if smoothing:
        total = total - smoothing * log_probabilities.mean(-1).sum()
    return total


def written(engine: Engine) -> Any:
    """Compiled layers run as written inside: for shapes that training does not have."""
    return as_written(engine.model)  # type: ignore[arg-type]
