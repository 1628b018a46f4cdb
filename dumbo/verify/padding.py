"""Proof: padding is nothing to a document's loss, on whichever side it stands.

right   as the trainer pads, where it does
left    as answers are generated in batches
none    each document alone
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dumbo.interfaces import IGNORE
from dumbo.patch.modules import base_of
from dumbo.verify.passes import layers_of, logits_of, looking, loss_sum, losses_alone, written
from dumbo.verify.proof import Proof, measured, tolerance_for

if TYPE_CHECKING:
    from dumbo.verify.subject import Subject


def padding(subject: Subject) -> Proof:
    """Sums of losses over the labelled tokens of a few documents of unlike length, padded and not."""
    documents = subject.need_documents(2)
    engine = subject.trainer
    collate = replace(engine.collate, layout="padded", room=None, places=False)
    right = collate([np.array([document]) for document in documents])
    left = flipped(right, engine.store.lengths[np.array(documents)].tolist(), takes_positions(engine.model))
    with looking(engine), written(engine):
        alone = [_sum_alone(subject, document) for document in documents]
        found = {side: _sums(engine, batch) for side, batch in (("right", right), ("left", left))}
    each, count = sum(total for total, _ in alone), sum(number for _, number in alone)
    counts = {side: number for side, (_, number) in found.items() if number != count}
    far = {side: abs(total - each) / max(abs(each), 1e-12) for side, (total, _) in found.items()}
    worst = max(far, key=lambda side: far[side] if far[side] == far[side] else float("inf"))
    fault = (
        f"{', '.join(f'{number:,} tokens bear a loss when padded {side}' for side, number in counts.items())}, {count:,} alone."
        if counts
        else f"Padded on the {worst}, the loss of these documents is {found[worst][0] / max(1, count):.6f}, alone {each / max(1, count):.6f}: "
        "padding is attended to, or moves positions.\nLook at the model's attention_mask; trainer.packing=true needs no padding."
    )
    return measured(
        "padding",
        f"loss of {count:,} trained tokens of {len(documents)} documents, padded left and right to {right['input_ids'].shape[1]} tokens, and alone",
        float("nan") if counts else far[worst],
        tolerance_for(subject.dtype, layers_of(engine.model)),
        fault,
    )


def _sum_alone(subject: Any, document: int) -> tuple[float, int]:
    """The same of a document by itself, its labels as they are stored."""
    bears = torch.from_numpy(subject.trainer.store.trained(document)[1:])
    return float(losses_alone(subject, document).cpu()[bears].sum()), int(bears.sum())


def _sums(engine: Any, batch: dict[str, Any]) -> tuple[float, int]:
    """Sum of the labelled tokens' losses, and how many they are."""
    total = loss_sum(logits_of(engine, batch).logits, batch["labels"])
    return float(total), int((batch["labels"][:, 1:] != IGNORE).sum())


def takes_positions(model: Any) -> bool:
    """Whether a model is told where its tokens stand."""
    return "position_ids" in inspect.signature(base_of(model).forward).parameters


def flipped(right: dict[str, Any], lengths: list[int], positions: bool) -> dict[str, Any]:
    """The same rows with their padding before them.

    Args:
        right: (B, T) input_ids, labels, attention_mask, padded on the right.
        lengths: of each row without padding.
        positions: add position_ids that count from a row's own first token.
    """
    width = right["input_ids"].shape[1]
    rolled = {
        name: torch.stack([row.roll(width - length) for row, length in zip(right[name], lengths, strict=True)])
        for name in ("input_ids", "labels", "attention_mask")
    }
    if positions:
        rolled["position_ids"] = (rolled["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return rolled
