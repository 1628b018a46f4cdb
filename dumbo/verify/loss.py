"""Proof: the loss that trains is the mean over the trained tokens, as computed by hand from the model's logits.

The trainer's own path, in training mode, with whatever patches, fused kernels and label smoothing are chosen, against
log_softmax in float32. A router's auxiliary loss is added on both sides as the model gives it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dumbo.trainer.feeding import trained_tokens
from dumbo.trainer.router import router_loss
from dumbo.verify.passes import logits_of, loss_sum, training
from dumbo.verify.proof import Proof, Tolerance, loss_tolerance, measured, tolerance_for

if TYPE_CHECKING:
    from dumbo.trainer.engine import Engine
    from dumbo.verify.subject import Subject


def loss(subject: Subject) -> Proof:
    """One micro batch of a few documents."""
    documents = subject.need_documents(1)
    engine = subject.trainer
    examples = examples_of(engine, documents)
    with training(engine), torch.no_grad():
        batch = engine.collate(examples)
        items = trained_tokens(batch)
        wanted = float(by_hand(engine, batch, items))
        inputs = engine._prepare_inputs({name: value for name, value in batch.items() if name != "documents"})
        divisor = torch.tensor(items, device=engine.args.device)
        got = float(engine.compute_loss(engine.model, dict(inputs), num_items_in_batch=divisor))
    smoothing = engine.args.label_smoothing_factor
    return measured(
        "loss = by hand",
        f"mean loss of {items:,} trained tokens: the trainer's, and log_softmax of the logits"
        + (f" with label smoothing {smoothing:g}" if smoothing else ""),
        abs(got - wanted) / max(abs(wanted), 1e-12),
        allowed(subject.dtype, items),
        f"The trainer's loss is {got:.6f}, by hand it is {wanted:.6f}.\n"
        "Leave out what replaces the loss: patch=[…] without liger and chunked_loss, or trainer.extra.label_smoothing_factor.",
    )


def allowed(dtype: torch.dtype, items: int) -> Tolerance:
    """Both losses come from the same layers. In half precision each logit may be rounded to a neighbour; of many tokens
    that has no common direction.
    """
    return tolerance_for(dtype, 0, factor=8) if dtype == torch.float32 else loss_tolerance(dtype, 0, items)


def examples_of(engine: Engine, documents: list[int]) -> list[Any]:
    """Documents as examples of a micro batch: one pack, or a row each."""
    return [np.array(documents)] if engine.collate.layout != "padded" else [np.array([d]) for d in documents]


def by_hand(engine: Engine, batch: dict[str, Any], items: int) -> torch.Tensor:
    """A micro batch's part of the mean over `items` trained tokens, times the ranks that it is averaged over; in training
    with its share of a router's loss.
    """
    outputs = logits_of(engine, batch)
    total = loss_sum(outputs.logits, batch["labels"], engine.args.label_smoothing_factor)
    model: Any = engine.model
    extra = router_loss(model, outputs) if model.training else None
    if extra is not None:
        total = total + extra * trained_tokens(batch)
    return total / items * engine.accelerator.num_processes
