"""Which documents of a pack are long, and where they lie: known on the CPU while their batch is on the GPU.

Used by `long_attention.py`, which gives them to cuDNN. The GPU is not asked: whoever moves a batch there tells (`tell`), and
attention finds it by the tensor (`known`). Of a batch that nobody told of, none is long: all go through tiles, as right and
slower.

cuDNN builds a plan for each length and number of rows, which takes 0.1 s. Lengths that hardly come again are rounded up
(`rounded`).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch

LONG = 4096
"""Tokens of a document that is long, a power of two: at 2,048 cuDNN is no faster than tiles, at 4,096 it is."""
STEPS = 16
"""Lengths that cuDNN sees between a power of two and the next."""


class Part(NamedTuple):
    """`documents` of `length` tokens each, one after the other from `start`; cuDNN sees rows of `row` >= `length` tokens."""

    start: int
    length: int
    documents: int
    row: int

    @property
    def end(self) -> int:
        return self.start + self.length * self.documents


@dataclass(frozen=True)
class _Told:
    tensor: weakref.ref[torch.Tensor]
    bounds: int
    parts: list[Part]


_told: dict[int, _Told] = {}
"""By where a tensor lies on the device. While it lives, nothing else can lie there."""


def tell(batch: dict[str, Any], there: dict[str, Any]) -> None:
    """Where the documents of a batch lie, for as long as it is on the device; told twice, the same is known.

    Args:
        batch: on the CPU.
        there: the same on the device.
    """
    bounds, own = batch.get("cu_seq_lens_q"), there.get("cu_seq_lens_q")
    if bounds is None or own is None or not _was_moved(bounds, own):
        return
    for place in [place for place, told in _told.items() if told.tensor() is None]:
        del _told[place]
    _told[own.data_ptr()] = _Told(weakref.ref(own), len(bounds), parts_of(bounds.tolist()))


def _was_moved(bounds: torch.Tensor, own: torch.Tensor) -> bool:
    return bounds.device.type == "cpu" != own.device.type


def known(bounds: torch.Tensor) -> list[Part]:
    """The long documents of which was told with this tensor on the device; none of one that nobody told of."""
    told = _told.get(bounds.data_ptr())
    return told.parts if told is not None and told.tensor() is not None and told.bounds == len(bounds) else []


def tell_of_copy(bounds: torch.Tensor, copy: torch.Tensor) -> None:
    """The same of a copy on the device, for as long as that lives."""
    _told[copy.data_ptr()] = _Told(weakref.ref(copy), len(copy), known(bounds))


def keep_whole_rows(bounds: torch.Tensor, tokens: int) -> list[Part]:
    """The long documents of a batch where they are rows that fill its axis; of any other it is known no more, and its
    documents go through tiles. For passes that are captured: rows come again in the same places, other documents do not.

    Args:
        bounds: on the device.
        tokens: of the axis.
    """
    parts = known(bounds)
    if fills(parts, tokens):
        return parts
    forget(bounds)
    return []


def forget(bounds: torch.Tensor) -> None:
    """Of this batch it is known no more: its documents go through tiles."""
    _told.pop(bounds.data_ptr(), None)


def fills(parts: list[Part], tokens: int) -> bool:
    """Whether one part is all of an axis of `tokens`."""
    return len(parts) == 1 and (parts[0].start, parts[0].end) == (0, tokens)


def rounded(length: int) -> int:
    """A row of cuDNN's for a document of `length` >= LONG tokens: at most a sixteenth longer."""
    step = (1 << (length.bit_length() - 1)) // STEPS
    return -(-length // step) * step


def room(tokens: int) -> int:
    """At least as many tokens as the rows of long documents on an axis of `tokens` can add up to."""
    return tokens + tokens // STEPS if tokens >= LONG else 0


def parts_of(bounds: Sequence[int]) -> list[Part]:
    """The long documents. Those of one length that follow each other go together, unrounded, as does one that fills the
    axis: such lengths (`trainer.max_seq_len`) come again.

    Args:
        bounds: where each document begins, and the end of the axis.
    """
    parts: list[Part] = []
    for start, end in pairwise(bounds):
        length = end - start
        if length < LONG:
            continue
        last = parts[-1] if parts else None
        if last is not None and (last.length, last.end) == (length, start):
            parts[-1] = Part(last.start, length, last.documents + 1, length)
        else:
            fills = (start, end) == (0, bounds[-1])
            parts.append(Part(start, length, 1, length if fills else rounded(length)))
    return parts
