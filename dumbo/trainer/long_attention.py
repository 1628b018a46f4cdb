"""Attention within the long documents of a pack in cuDNN, which takes rows: from 4,096 tokens on it is faster than tiles.

Used by the operator of `tiles.py`. Where a row is longer than its document (`long_documents.rounded`), what lies past the end is
looked at by nothing that counts: attention is causal, and gradients of what comes after are zeros. cuDNN's gradients are not
the same bits each time: with torch.use_deterministic_algorithms all goes through tiles. Measured: "Long documents" in
benchmarks/NOTES.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from dumbo.trainer import cudnn, long_documents
from dumbo.trainer.long_documents import LONG, Part


def parts_for(q: torch.Tensor, k: torch.Tensor, bounds: torch.Tensor, window: int) -> list[Part]:
    """The parts of a batch that go through cuDNN: none under a sliding window, of which tiles leave out most.

    Args:
        q: (T, heads, width); k: (T, key-value heads, width).
        bounds: (documents + 1,) on the device.
    """
    parts = [] if window or len(q) < LONG else long_documents.known(bounds)
    if not parts or torch.are_deterministic_algorithms_enabled():
        return []
    return parts if cudnn.why_not(q.shape[1], k.shape[1], q.shape[2], q.dtype, q.device.index or 0) is None else []


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    parts: list[Part],
    scale: float,
    out: torch.Tensor | None,
    lse: torch.Tensor,
) -> torch.Tensor:
    """Attention of the parts, one at least; the logarithms of softmax's sums one after the other to `lse`.

    Args:
        q: (T, heads, width); k and v: (T, key-value heads, width), contiguous.
        out: like q; the parts are written to it. None where one part is all of the axis (`fills`): what cuDNN makes is the
            output then.
        lse: (heads * room(T),) float32.

    Raises:
        RuntimeError: cuDNN's.
    """
    for part, sums in _with_sums(parts, lse, q.shape[1]):
        some, keys, values = (_rows(tensor, part) for tensor in (q, k, v))
        found, theirs = cudnn.attend_rows(some, keys, values, scale)
        sums.copy_(theirs)
        out = _put(out, found, part)
    assert out is not None
    return out


def backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, grad: torch.Tensor,
    parts: list[Part], scale: float, found: Sequence[torch.Tensor | None],
) -> list[torch.Tensor]:  # fmt: skip
    """The parts' gradients of q, k and v, written to `found` or not as in `forward`; `out` and `lse` as that left them.

    Raises:
        RuntimeError: cuDNN's.
    """
    gradients = list(found)
    for part, sums in _with_sums(parts, lse, q.shape[1]):
        some, keys, values, outputs = (_rows(tensor, part) for tensor in (q, k, v, out))
        theirs = cudnn.attend_rows_backward(_rows(grad[: part.end], part), some, keys, values, outputs, sums, scale)
        gradients = [_put(to, gradient, part) for to, gradient in zip(gradients, theirs, strict=True)]
    return [gradient for gradient in gradients if gradient is not None]


def _rows(tensor: torch.Tensor, part: Part) -> torch.Tensor:
    """(documents, heads, row, width) of a part; where the axis ends before, zeros."""
    piece = tensor[part.start : part.start + part.documents * part.row]
    if lacks := part.documents * part.row - len(piece):
        piece = torch.nn.functional.pad(piece, (0, 0, 0, 0, 0, lacks))
    return piece.unflatten(0, (part.documents, part.row)).transpose(1, 2)


def _put(to: torch.Tensor | None, rows: torch.Tensor, part: Part) -> torch.Tensor:
    """`to` (T, heads, width) with a part's rows in it; None: themselves."""
    tokens = rows.transpose(1, 2).flatten(0, 1)[: part.end - part.start]
    if to is None:
        return tokens.contiguous()
    to[part.start : part.end] = tokens
    return to


def _with_sums(parts: list[Part], lse: torch.Tensor, heads: int) -> Iterator[tuple[Part, torch.Tensor]]:
    """Each part, and where its logarithms of sums lie: (documents, heads, row, 1)."""
    at = 0
    for part in parts:
        size = part.documents * heads * part.row
        yield part, lse[at : at + size].view(part.documents, heads, part.row, 1)
        at += size
