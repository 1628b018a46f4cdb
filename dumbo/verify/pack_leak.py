"""Whether packed documents see each other on a loaded model: replace one, and look at the others' logits.

The batches are made by the same `Collate` as the training's, from random documents. Where layers are compiled
packs may go through the graphs that train, in training mode with gradients (but without dropout: where there is some, training
has graphs of its own). A graph for evaluation would be compiled for nothing but this.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dumbo.patch.modules import base_of
from dumbo.trainer.collate import Collate, Layout, Room, leave_documents_free
from dumbo.verify.experts import composition_noise, root_mean_square
from dumbo.verify.no_dropout import without_dropout

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

LENGTHS = (19, 24, 13)
"""Tokens of the first, the middle and the last document of the pack."""
FIRST, MIDDLE, LAST, OTHER = range(4)
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
        spread: root mean square of the changes of a document's logits, of the one where it is larger.
    """

    leak: float
    against_alone: float
    spread: float = 0.0


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
    as_training: bool = False,
) -> Leak:
    """Packs three documents (and two more in a second, shorter pack), replaces the middle one, and compares.

    Args:
        layout: of the packs.
        vocab_size: ids are drawn below it.
        alone: what `probe_alone` gave.
        bf16: in the arithmetic of training under bf16.
        lengths: of the first, middle and last document.
        room: of the packs.
        as_training: with gradients; what layers keep for them is held.
    """
    second = [LAST, FIRST]
    if room is not None:
        room = room.holding([*lengths, lengths[LAST], lengths[FIRST]])
    with_middle = _logits(model, layout, vocab_size, [[FIRST, MIDDLE, LAST], second], bf16, lengths, room, as_training)
    with_other = _logits(model, layout, vocab_size, [[FIRST, OTHER, LAST], second], bf16, lengths, room, as_training)
    start = lengths[FIRST] + lengths[MIDDLE]
    end = start + lengths[LAST]
    changes = [with_middle[one] - with_other[one] for one in (slice(lengths[FIRST]), slice(start, end))]
    against_alone = float((with_middle[start:end] - alone).abs().max() / alone.abs().max())
    leak = float(np.max([float(each.abs().max()) for each in changes]))  # nan stays
    return Leak(leak, against_alone, float(np.max([root_mean_square(each) for each in changes])))


def probe_experts(
    model: PreTrainedModel, vocab_size: int, bf16: bool = False, lengths: tuple[int, int, int] = LENGTHS
) -> float:
    """The noise of experts on the last document, in a padded batch with the attention that the model has now."""
    kept = torch.from_numpy(_Documents(vocab_size, lengths).ids(LAST))
    return composition_noise(lambda batch: _passed(model, batch, bf16), [kept], vocab_size)


def _logits(
    model: PreTrainedModel,
    layout: Layout,
    vocab_size: int,
    packs: list[list[int]],
    bf16: bool,
    lengths: tuple[int, int, int],
    room: Room | None = None,
    as_training: bool = False,
) -> torch.Tensor:
    """(T, V) in float32, of the first row (where there is one token axis: of all packs; of padding where it must)."""
    documents: Any = _Documents(vocab_size, lengths)
    batch = Collate(documents, layout, 0, room)([np.array(pack) for pack in packs])
    if room is not None and "logits_to_keep" in inspect.signature(base_of(model).forward).parameters:
        batch["logits_to_keep"] = torch.arange(sum(lengths))
    moved = {key: value for key, value in batch.items() if key not in ("labels", "documents")}
    if room is not None:
        leave_documents_free(moved)
    return _passed(model, moved, bf16, as_training)[0]


def _passed(model: PreTrainedModel, batch: dict[str, Any], bf16: bool, as_training: bool = False) -> torch.Tensor:
    """(B, T, V) in float32, in evaluation mode or as training computes them, but for dropout."""
    moved = {key: value.to(model.device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    was_training = model.training
    model.train(as_training)
    autocast = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16 or model.dtype == torch.bfloat16)
    with torch.set_grad_enabled(as_training), without_dropout(model), autocast:
        logits: torch.Tensor = model(**moved).logits.detach().float()
    model.train(was_training)
    return logits
