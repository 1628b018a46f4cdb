"""Proof: the gradients of k micro batches are those of one large batch.

The micro batches go through the trainer's own step. The large batch is plain autograd: one backward pass of the mean,
by hand, over the trained tokens of all of them. Halves with unequal numbers of trained tokens are what a mean of means
gets wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dumbo.trainer.feeding import trained_tokens
from dumbo.verify.loss import by_hand, examples_of
from dumbo.verify.passes import layers_of, training
from dumbo.verify.proof import Proof, measured, rms_tolerance

if TYPE_CHECKING:
    from dumbo.trainer.engine import Engine
    from dumbo.verify.subject import Subject


def accumulation(subject: Subject) -> Proof:
    """Two micro batches: the document with the fewest trained tokens, and the others."""
    documents = subject.need_documents(2)
    engine = subject.trainer
    parts = [examples_of(engine, part) for part in (documents[:1], documents[1:])]
    with training(engine):
        batches = [engine.collate(part) for part in parts]
        counts = [trained_tokens(batch) for batch in batches]
        items = sum(counts)
        torch.stack([by_hand(engine, batch, items) for batch in batches]).sum().backward()
        large = _taken(engine.model)
        divisor = engine.items_of(batches, engine.args.device)
        engine.current_gradient_accumulation_steps = len(batches)
        for batch in batches:
            engine.pending.append(batch.pop("documents"))
            engine.training_step(engine.model, batch, divisor)
        difference, ratio = _compared(engine, large)
    return measured(
        "accumulation",
        f"gradients of {len(large)} tensors: {len(parts)} micro batches of {' and '.join(map(str, counts))} trained tokens, "
        f"and one batch of {items}",
        difference,
        rms_tolerance(subject.dtype, layers_of(engine.model)),
        f"Two micro batches give {ratio:.4f} times the gradient of one large batch, or one of another direction: a step "
        "depends on trainer.micro_batch_size.\nWrite trainer.micro_batch_size as large as trainer.global_batch_size until it is mended.",
    )


def _taken(model: Any) -> dict[str, torch.Tensor]:
    """The gradients, on the CPU, which the model has no longer."""
    found = {name: p.grad.detach().float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def _compared(engine: Engine, large: dict[str, torch.Tensor]) -> tuple[float, float]:
    """(relative distance of all gradients as one vector, ratio of the norms)."""
    small = _taken(engine.model)
    apart = norm = own = 0.0
    for name in {**large, **small}:
        a, b = large.get(name), small.get(name)
        left = a if a is not None else torch.zeros(())
        right = b if b is not None else torch.zeros(())
        apart += float((left - right).double().square().sum())
        norm += float(left.double().square().sum())
        own += float(right.double().square().sum())
    if norm == 0:
        return float("nan"), float("nan")  # nothing was compared
    return (apart / norm) ** 0.5, (own / norm) ** 0.5
