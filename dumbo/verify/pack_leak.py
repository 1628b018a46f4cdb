"""Whether packed documents see each other on a loaded model: replace one, and look at the others' logits.

The batches are made by the same `Collate` as the training's, from random documents.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dumbo.patch.modules import base_of
from dumbo.trainer.collate import Collate, Layout, Room, leave_documents_free

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

LENGTHS = (19, 24, 13)
"""Tokens of the first, the middle and the last document of the pack."""
FIRST, MIDDLE, LAST, OTHER = range(4)
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Config keys that count the experts of a layer."""
REACHES = ("sliding_window", "attention_chunk_size")
"""Config keys that say how far a token sees. Some models keep that in their mask alone, which packs go without."""


def lengths_past(config: Any, longest: int) -> tuple[int, int, int]:
    """Lengths for the probe: past the model's window where documents can be, else short.

    Args:
        config: the (text) model's.
        longest: tokens of the longest document.
    """
    reach = min((number for key in REACHES if (number := getattr(config, key, None))), default=0)
    return (LENGTHS[FIRST], reach + 24, reach + 13) if 0 < reach < longest else LENGTHS


@dataclass(frozen=True)
class Leak:
    """Result of the probe.

    Attributes:
        leak: largest change of a logit in the other documents when one document is replaced; 0 when isolated.
        against_alone: largest difference of a logit between packed and alone, relative to the largest logit.
        largest: logit, of the last document alone.
    """

    leak: float
    against_alone: float
    largest: float = 1.0


class _Documents:
    """Four random documents, the last as long as the middle one; what `Collate` needs of a Store."""

    def __init__(self, vocab_size: int, lengths: tuple[int, int, int]) -> None:
        generator = np.random.default_rng(0)
        self._ids = [generator.integers(0, vocab_size, size) for size in (*lengths, lengths[MIDDLE])]
        self.lengths = np.array([len(ids) for ids in self._ids])

    def ids(self, document: int) -> NDArray[np.int64]:
        return self._ids[document]

    def labels(self, document: int) -> NDArray[np.int64]:
        return np.full(self.lengths[document], -100)


def probe_alone(
    model: PreTrainedModel, vocab_size: int, bf16: bool = False, lengths: tuple[int, int, int] = LENGTHS
) -> torch.Tensor:
    """(T, V) logits of the last document alone, with the attention that the model has now.

    Args:
        vocab_size: ids are drawn below it.
        bf16: in the arithmetic of training under bf16.
        lengths: of the first, middle and last document.
    """
    return _logits(model, "padded", vocab_size, [[LAST]], bf16, lengths)


def probe_packing(
    model: PreTrainedModel,
    layout: Layout,
    vocab_size: int,
    alone: torch.Tensor,
    bf16: bool = False,
    lengths: tuple[int, int, int] = LENGTHS,
    room: Room | None = None,
) -> Leak:
    """Packs three documents (and two more in a second, shorter pack), replaces the middle one, and compares.

    Args:
        layout: of the packs.
        vocab_size: ids are drawn below it.
        alone: what `probe_alone` gave.
        bf16: in the arithmetic of training under bf16.
        lengths: of the first, middle and last document.
        room: of the packs.
    """
    second = [LAST, FIRST]
    if room is not None:
        room = room.holding([*lengths, lengths[LAST], lengths[FIRST]])
    with_middle = _logits(model, layout, vocab_size, [[FIRST, MIDDLE, LAST], second], bf16, lengths, room)
    with_other = _logits(model, layout, vocab_size, [[FIRST, OTHER, LAST], second], bf16, lengths, room)
    start = lengths[FIRST] + lengths[MIDDLE]
    end = start + lengths[LAST]
    outside = [*range(lengths[FIRST]), *range(start, end)]
    leak = float((with_middle[outside] - with_other[outside]).abs().max())
    largest = alone.abs().max()
    return Leak(leak, float((with_middle[start:end] - alone).abs().max() / largest), float(largest))


def has_experts(model: Any) -> bool:
    """Whether tokens are dealt out to experts: how many of them share a product then depends on the other documents, and
    sums are taken in another order. What is bitwise the same elsewhere is the same but for rounding there.
    """
    config = base_of(model).config.get_text_config()
    return any((getattr(config, key, None) or 0) > 1 for key in EXPERTS)


def _logits(
    model: PreTrainedModel,
    layout: Layout,
    vocab_size: int,
    packs: list[list[int]],
    bf16: bool,
    lengths: tuple[int, int, int],
    room: Room | None = None,
) -> torch.Tensor:
    """(T, V) in float32, of the first row (where there is one token axis: of all packs; of padding where it must)."""
    documents: Any = _Documents(vocab_size, lengths)
    batch = Collate(documents, layout, 0, room)([np.array(pack) for pack in packs])
    if room is not None and "logits_to_keep" in inspect.signature(base_of(model).forward).parameters:
        batch["logits_to_keep"] = torch.arange(sum(lengths))
    moved = {
        key: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
        if key not in ("labels", "documents")
    }
    if room is not None:
        leave_documents_free(moved)
    was_training = model.training
    model.eval()
    autocast = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16 or model.dtype == torch.bfloat16)
    with torch.no_grad(), autocast:
        logits: torch.Tensor = model(**moved).logits[0].float()
    model.train(was_training)
    return logits
