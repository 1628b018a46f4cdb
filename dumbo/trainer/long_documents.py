"""Long documents of a pack in cuDNN's attention, which takes rows: from 4,096 tokens on it is faster than tiles.

Used by the operator of `tiles.py`. Where documents lie is needed on the CPU, without asking the GPU for it: whoever moves a
batch there tells (`tell`), and the operator finds it by the tensor (`known`). Of a batch that nobody told of, all documents
go through tiles.

cuDNN (`cudnn.py`) builds a plan for each length, which takes 0.1 s: lengths are rounded up (`rounded`). What lies past a
document's end is then looked at by nothing that counts: attention is causal, and gradients of what comes after are zeros.
cuDNN's gradients are not the same bits each time: with torch.use_deterministic_algorithms all goes through tiles.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from dumbo.trainer import cudnn

LONG = 4096
"""Tokens of a document that is long, a power of two. Measured on an H200, one document after the other: at 2,048 tokens alike,
at 4,096 and heads of 128 1.3 times as fast as tiles, at 8,192 1.5 times."""
STEPS = 16
"""Lengths that cuDNN sees between a power of two and the next."""


class Part(NamedTuple):
    """`documents` of `length` tokens each, one after the other from `start`."""

    start: int
    length: int
    documents: int

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
    """Where the documents of a batch lie, for as long as it is on the device.

    Args:
        batch: on the CPU.
        there: the same on the device.
    """
    bounds = batch.get("cu_seq_lens_q")
    if bounds is None or bounds.device.type != "cpu" or there["cu_seq_lens_q"].device.type == "cpu":
        return
    for place in [place for place, told in _told.items() if told.tensor() is None]:
        del _told[place]
    own = there["cu_seq_lens_q"]
    _told[own.data_ptr()] = _Told(weakref.ref(own), len(bounds), parts_of(bounds.tolist()))


def known(bounds: torch.Tensor) -> list[Part]:
    """The long documents of which was told with this tensor on the device; none of one that nobody told of."""
    told = _told.get(bounds.data_ptr())
    return told.parts if told is not None and told.tensor() is not None and told.bounds == len(bounds) else []


def tell_of_copy(bounds: torch.Tensor, copy: torch.Tensor) -> None:
    """The same of a copy on the device, for as long as that lives."""
    _told[copy.data_ptr()] = _Told(weakref.ref(copy), len(copy), known(bounds))


def rounded(length: int) -> int:
    """A length that cuDNN sees for a document of `length` >= LONG tokens: less than a sixteenth more."""
    step = (1 << (length.bit_length() - 1)) // STEPS
    return -(-length // step) * step


def room(tokens: int) -> int:
    """At least as many tokens as the rounded lengths of long documents on an axis of `tokens` can add up to."""
    return tokens + tokens // STEPS if tokens >= LONG else 0


def parts_of(bounds: Sequence[int]) -> list[Part]:
    """The long documents, those of one length that follow each other together where nothing has to be rounded.

    Args:
        bounds: where each document begins, and the end.
    """
    parts: list[Part] = []
    for start, end in pairwise(bounds):
        length = end - start
        if length < LONG:
            continue
        last = parts[-1] if parts else Part(0, 0, 0)
        if rounded(length) == length == last.length and last.end == start:
            parts[-1] = last._replace(documents=last.documents + 1)
        else:
            parts.append(Part(start, length, 1))
    return parts


def parts_for(q: torch.Tensor, k: torch.Tensor, bounds: torch.Tensor, window: int) -> list[Part]:
    """The parts of a batch that go through cuDNN: none under a sliding window, of which tiles leave out most.

    Args:
        q: (T, heads, width); k: (T, key-value heads, width).
        bounds: (documents + 1,) on the device.
    """
    parts = [] if window or len(q) < LONG else known(bounds)
    if not parts or torch.are_deterministic_algorithms_enabled():
        return []
    return parts if cudnn.why_not(q.shape[1], k.shape[1], q.shape[2], q.dtype, q.device.index or 0) is None else []


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    parts: list[Part],
    scale: float,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Attention of the parts, written to `out`; the logarithms of softmax's sums one after the other to `lse`.

    Args:
        q: (T, heads, width); k and v: (T, key-value heads, width), contiguous.
        out: like q.
        lse: (heads * room(T),) float32.
    """
    for part, sums in _with_sums(parts, lse, q.shape[1]):
        some, keys, values = (_rows(tensor, part) for tensor in (q, k, v))
        found, theirs = cudnn.attend_rows(some, keys, values, scale)
        out[part.start : part.end] = _tokens(found, part)
        sums.copy_(theirs)


def backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, grad: torch.Tensor,
    parts: list[Part], scale: float, found: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:  # fmt: skip
    """The parts' gradients of q, k and v, written to `found`; `out` and `lse` as `forward` left them."""
    for part, sums in _with_sums(parts, lse, q.shape[1]):
        some, keys, values, outputs = (_rows(tensor, part) for tensor in (q, k, v, out))
        theirs = cudnn.attend_rows_backward(_rows(grad[: part.end], part), some, keys, values, outputs, sums, scale)
        for to, gradient in zip(found, theirs, strict=True):
            to[part.start : part.end] = _tokens(gradient, part)


def _rows(tensor: torch.Tensor, part: Part) -> torch.Tensor:
    """(documents, heads, rounded length, width) of a part; where the axis ends before, zeros."""
    length = rounded(part.length)
    piece = tensor[part.start : part.start + part.documents * length]
    if lacks := part.documents * length - len(piece):
        piece = torch.nn.functional.pad(piece, (0, 0, 0, 0, 0, lacks))
    return piece.unflatten(0, (part.documents, length)).transpose(1, 2)


def _tokens(rows: torch.Tensor, part: Part) -> torch.Tensor:
    """(tokens, heads, width) of a part's rows."""
    return rows.transpose(1, 2).flatten(0, 1)[: part.end - part.start]


def _with_sums(parts: list[Part], lse: torch.Tensor, heads: int) -> Iterator[tuple[Part, torch.Tensor]]:
    """Each part, and where its logarithms of sums lie: (documents, heads, rounded length, 1)."""
    at = 0
    for part in parts:
        shape = (part.documents, heads, rounded(part.length), 1)
        size = part.documents * heads * rounded(part.length)
        yield part, lse[at : at + size].view(shape)
        at += size
