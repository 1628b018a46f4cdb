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
from dumbo.verify.passes import alone, layers_of, logits_of, looking, next_token_losses, same_losses, written
from dumbo.verify.proof import Proof, measured, tolerance_for

if TYPE_CHECKING:
    from dumbo.verify.subject import Subject


def padding(subject: Subject) -> Proof:
    """Losses of the labelled tokens of a few documents of unlike length, padded and not."""
    documents = subject.need_documents(2)
    engine = subject.trainer
    collate = replace(engine.collate, layout="padded", room=None, places=False)
    right = collate([np.array([document]) for document in documents])
    left = flipped(right, engine.store.lengths[np.array(documents)].tolist(), takes_positions(engine.model))
    with looking(engine), written(engine):
        wanted = [_labelled(subject, document) for document in documents]
        found = {side: _losses(engine, batch) for side, batch in (("right", right), ("left", left))}
        count = sum(map(len, wanted))
        counts = {side: sum(map(len, rows)) for side, rows in found.items()}
        faults, worst, allowed = [], 0.0, None
        for side, rows in found.items():
            if counts[side] != count:
                faults.append(f"{counts[side]:,} tokens bear a loss when padded on the {side}, {count:,} alone")
                worst = float("nan")
                continue
            apart, allowed = same_losses(subject, documents, [a - b for a, b in zip(rows, wanted, strict=True)])
            if not apart <= allowed.value:
                faults.append(
                    f"padded on the {side}, losses differ by {apart:.2g} nats: padding is attended to, or moves positions"
                )
            worst = float(np.max([worst, apart]))  # nan stays
    allowed = allowed or tolerance_for(subject.dtype, layers_of(engine.model))
    return measured(
        "padding",
        f"loss of each of {count:,} trained tokens of {len(documents)} documents, padded left and right to "
        f"{right['input_ids'].shape[1]} tokens, and alone (root mean square)",
        worst,
        allowed,
        f"{'; '.join(faults)}.\nLook at what the model does with attention_mask; packs (trainer.packing=true) need no padding.",
    )


def _labelled(subject: Subject, document: int) -> torch.Tensor:
    """Losses of a document's labelled tokens, by itself."""
    losses = alone(subject, document).losses
    return losses[torch.from_numpy(subject.trainer.store.trained(document)[1:]).to(losses.device)]


def _losses(engine: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    """Losses of the labelled tokens of each row."""
    logits = logits_of(engine, batch).logits
    rows = []
    for row, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        losses = next_token_losses(logits[row], ids)
        rows.append(losses[(labels[1:] != IGNORE).to(losses.device)])
    return rows


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
