"""Three proofs at the start of a run, in seconds, on the loaded model and the prepared data.

1. mask: trained tokens, decoded, are the assistant turns of the source rows (`mask.py`).
2. pack leak: another document in the pack changes nothing, and packed is as alone (`pack_leak.py`).
3. accumulation: one micro batch of documents gives the loss and gradient of the same documents in two.

A proof that does not hold ends the run (exit code 4): its numbers would have been wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dumbo.errors import ProofFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dumbo.prepare.store import Split
    from dumbo.trainer.collate import Collate
    from dumbo.trainer.engine import Engine


LOOKED_AT = 256
"""Documents among which those of the accumulation's proof are chosen."""


def unlike_documents(split: Split) -> list[NDArray[np.int64]]:
    """The document with the fewest trained tokens and the one with the most, of the shortest quarter of the first ones.

    Halves with unequal numbers of trained tokens are what a mean of means gets wrong; short ones keep it quick.
    """
    first = split.documents[:LOOKED_AT]
    lengths = split.store.lengths[first]
    shortest = first[np.argsort(lengths, kind="stable")[: max(4, len(first) // 4)]]
    by_trained = sorted(shortest.tolist(), key=lambda document: int(split.store.trained(document).sum()))
    chosen = by_trained if len(by_trained) < 2 else [by_trained[0], by_trained[-1]]
    return [np.array([document]) for document in chosen]


def accumulation_proof(
    engine: Engine, collate: Collate, examples: Sequence[NDArray[np.int64]], tolerance: float
) -> str:
    """The same examples in one micro batch and in two: loss and gradient norm agree.

    Raises:
        ProofFailed: they do not, within `tolerance` (relative).
    """
    halves = [list(examples[: len(examples) // 2]), list(examples[len(examples) // 2 :])]
    once = _loss_and_norm(engine, [collate(list(examples))])
    twice = _loss_and_norm(engine, [collate(half) for half in halves if half])
    difference = max(abs(a - b) / max(abs(a), 1e-12) for a, b in zip(once, twice, strict=True))
    if difference > tolerance:
        raise ProofFailed(
            f"Gradient accumulation changes the numbers: loss {once[0]:.6f} and gradient norm {once[1]:.6f} in one micro "
            f"batch, {twice[0]:.6f} and {twice[1]:.6f} in two (tolerance {tolerance:g})."
        )
    return f"accumulation 1 = 2 to {difference:.0e}"


def _loss_and_norm(engine: Engine, batches: list[dict[str, Any]]) -> tuple[float, float]:
    model: Any = engine.model
    model.zero_grad()
    was_training = model.training
    model.eval()  # no dropout: the two must see the same numbers
    items = engine.items_of(batches, engine.args.device)
    total = 0.0
    for batch in batches:
        inputs = engine._prepare_inputs({key: value for key, value in batch.items() if key != "documents"})
        with torch.autocast(engine.args.device.type, dtype=torch.bfloat16, enabled=engine.args.bf16):
            loss = engine.compute_loss(model, inputs, num_items_in_batch=items)
        loss.backward()
        total += float(loss.detach())
    norm = float(
        torch.sqrt(
            sum(
                (p.grad.float().square().sum() for p in model.parameters() if p.grad is not None),
                torch.zeros((), device=engine.args.device),
            )
        )
    )
    model.zero_grad()
    model.train(was_training)
    return total, norm
