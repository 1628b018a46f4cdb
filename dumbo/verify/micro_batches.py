"""Two of the quick proofs (`quick.py`): what the trainer does with two micro batches of documents gives the loss and gradient
of the mean over the trained tokens of both; and where output head and loss are one, these are those from the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dumbo.errors import ProofFailed
from dumbo.patch.chunked_loss import chunks_of
from dumbo.patch.compile import as_written
from dumbo.verify.no_dropout import without_dropout
from dumbo.verify.quick import untouched

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dumbo.prepare.store import Split, Store
    from dumbo.trainer.collate import Collate
    from dumbo.trainer.engine import Engine

ACCUMULATION = {True: 0.05, False: 1e-4}
"""Relative, of loss and gradient norm; in half precision, and in float32. Seen on SmolLM2: at most 0.013 and 3e-7, since both
sides round differently where rows are of another length. The halves have numbers of trained tokens so unequal that a mean of
means is off by far more (`FEWER`).
"""
FEWER = 16
"""Times as many trained tokens has one half. Of two rows of 4,096 tokens of text on SmolLM2 a mean of means is off by 2% where the
first is cut to a half, 8 to 17% at a quarter, 41% at an eighth, 94 to 130% at a sixteenth (loss or gradient norm, the larger)."""
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


def unequal(examples: Sequence[NDArray[np.int64]]) -> Callable[[Store], Mapping[int, int]]:
    """Of the first of two documents so much less that it has a `FEWER`th of the second's trained tokens at most, and one at least:
    of alike ones (rows of one length, answers of one form) the mean of means is the mean.
    """
    (first,), (second,) = (example.tolist() for example in examples)

    def fewer(store: Store) -> Mapping[int, int]:
        most = store.trained_tokens(np.array([second])) // FEWER
        return {first: max(2, most)} if store.trained_tokens(np.array([first])) > most else {}

    return fewer


def accumulation_proof(
    engine: Engine, collate: Collate, examples: Sequence[NDArray[np.int64]], tolerance: float
) -> str:
    """The same examples in one micro batch and in two: loss and gradient norm agree.

    One micro batch is plain autograd on `compute_loss`; two go through `training_step`, as in training. Both in training
    mode (the loss that trains is the one that is proven), without dropout, and without a trace: gradients, random state
    and modes are as before. Where training's micro batch has no room for both, the one is as long as they are and its
    layers run as written: in another room they would be compiled once more.

    Raises:
        ProofFailed: they do not, within `tolerance` (relative).
    """
    halves = [list(examples[: len(examples) // 2]), list(examples[len(examples) // 2 :])]
    model: Any = engine.model
    tokens = int(collate.store.lengths[np.concatenate(list(examples))].sum())
    fits = collate.room is None or tokens <= collate.room.tokens
    with untouched(engine), without_dropout(model):
        with nullcontext() if fits else as_written(model):
            once = _plainly(engine, (collate if fits else replace(collate, room=None))(list(examples)))
        twice = _as_trained(engine, [collate(half) for half in halves if half])
    difference = float(np.max([abs(a - b) / max(abs(a), 1e-12) for a, b in zip(once, twice, strict=True)]))  # nan stays
    if not difference <= tolerance:
        raise ProofFailed(
            f"Gradient accumulation changes the numbers: loss {once[0]:.6f} and gradient norm {once[1]:.6f} in one micro "
            f"batch, {twice[0]:.6f} and {twice[1]:.6f} in two (tolerance {tolerance:g})."
        )
    return f"accumulation 1 = 2 to {difference:.0e}"


def fused_loss_proof(engine: Engine, collate: Collate, examples: Sequence[NDArray[np.int64]], tolerance: float) -> str:
    """Output head and loss in one against the loss computed by hand from the model's logits, on the same examples.

    In evaluation mode, where both are to be had from every model; the layers run as written, and the examples unpadded,
    so that their logits are few. In chunks of a third of them, so that sums over chunks are proven too.

    Raises:
        ProofFailed: loss or gradient norm differ by more than `tolerance` (relative).
    """
    from dumbo.verify.loss import by_hand

    model: Any = engine.model
    with untouched(engine), as_written(model):
        model.eval()
        batch = replace(collate, room=None)(list(examples))
        items = engine.items_of([batch], engine.args.device)
        inputs = engine._prepare_inputs({key: value for key, value in batch.items() if key != "documents"})
        found = []
        for loss in (
            lambda: engine.compute_loss(model, dict(inputs), num_items_in_batch=items),
            lambda: by_hand(engine, batch, int(items)),
        ):
            with chunks_of(max(1, int(items) // 3)):
                one = loss()
                one.backward()
            found.append((float(one.detach()), _norm_taken(model)))
    fused, plain = found
    difference = float(
        np.max([abs(a - b) / max(abs(b), 1e-12) for a, b in zip(fused, plain, strict=True)])
    )  # nan stays
    if not difference <= tolerance:
        raise ProofFailed(
            f"Output head and loss in one change the numbers: loss {fused[0]:.6f} and gradient norm {fused[1]:.6f}, from the "
            f"logits {plain[0]:.6f} and {plain[1]:.6f} (tolerance {tolerance:g}).\n"
            "  Leave chunked_loss out of patch=[…] (performance=off where that added it), or write "
            "patch.liger.fused_linear_cross_entropy=false"
        )
    return f"fused loss = loss from logits to {difference:.0e}"


def _plainly(engine: Engine, batch: dict[str, Any]) -> tuple[float, float]:
    """Loss and gradient norm of one micro batch, without the trainer's step."""
    model: Any = engine.model
    model.train()
    items = engine.items_of([batch], engine.args.device)
    inputs = engine._prepare_inputs({key: value for key, value in batch.items() if key != "documents"})
    loss = engine.compute_loss(model, inputs, num_items_in_batch=items)
    loss.backward()
    return float(loss.detach()), _norm_taken(model)


def _as_trained(engine: Engine, batches: list[dict[str, Any]]) -> tuple[float, float]:
    """Loss and gradient norm of an optimizer step, as Trainer's loop makes one of these micro batches."""
    items = engine.items_of(batches, engine.args.device)
    engine.current_gradient_accumulation_steps = len(batches)
    total = 0.0
    for batch in batches:
        engine.pending.append(batch.pop("documents"))
        total += float(engine.training_step(engine.model, batch, items))
    return total, _norm_taken(engine.model)


def _norm_taken(model: Any) -> float:
    """The norm of all gradients, which are gone afterwards."""
    norms = [
        torch.linalg.vector_norm(p.grad, dtype=torch.float32).item() for p in model.parameters() if p.grad is not None
    ]
    model.zero_grad()
    return float(np.linalg.norm(norms))
