"""Whole documents into rows of a fixed length, with little room left, and mixed as shuffling would mix them.

Best fit, longest first, fills packs best but puts documents of one length side by side, and length goes with kind:
a batch of such packs is no random sample. So documents are taken in shuffled order while they fit, and the room
left over is closed with the longest document that still fits, wherever it stands in the order. Over 99% filled
on real lengths (tests), about a second for a million documents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dumbo.errors import UserError


@dataclass(frozen=True)
class Packs:
    """Which documents share a row.

    Attributes:
        members: (N,) document numbers, pack after pack.
        offsets: (P + 1,) where each pack begins in `members`.
        tokens: (P,) tokens in each pack.
        capacity: tokens a pack can hold.
    """

    members: NDArray[np.int64]
    offsets: NDArray[np.int64]
    tokens: NDArray[np.int64]
    capacity: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, pack: int) -> NDArray[np.int64]:
        """The documents of a pack."""
        return self.members[self.offsets[pack] : self.offsets[pack + 1]]

    @property
    def filled(self) -> float:
        """Share of all room that holds tokens."""
        return float(self.tokens.sum() / max(1, len(self) * self.capacity))


def pack(lengths: NDArray[np.int64], documents: NDArray[np.int64], capacity: int, seed: int) -> Packs:
    """Packs documents.

    Args:
        lengths: (N,) tokens of each document, none longer than `capacity`.
        documents: (N,) their numbers.
        capacity: tokens a pack.
        seed: which of several documents of one length goes where.
    """
    if len(lengths) and int(lengths.max()) > capacity:
        raise UserError(f"a document of {int(lengths.max())} tokens does not fit into a pack of {capacity}.")
    order = np.random.default_rng([seed, 0xBAC]).permutation(len(documents))
    places, sizes = _fill(lengths[order].tolist(), capacity)
    members = order[places]
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
    totals = np.concatenate([[0], np.cumsum(lengths[members], dtype=np.int64)])
    return Packs(documents[members], offsets, np.diff(totals[offsets]), capacity)


def _fill(lengths: list[int], capacity: int) -> tuple[NDArray[np.int64], list[int]]:
    """Places in the given order, pack after pack, and the number of documents in each pack.

    Lengths of which documents remain are bits of one integer, so the longest that fits is a mask and a bit count.
    """
    by_length: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        by_length.setdefault(length, []).append(place)
    remaining = 0
    for length in by_length:
        remaining |= 1 << length
    used = bytearray(len(lengths))
    places: list[int] = []
    sizes: list[int] = []
    room, begun = capacity, 0
    for place, length in enumerate(lengths):
        if used[place]:
            continue
        if length > room:
            while fitting := remaining & ((1 << (room + 1)) - 1):
                longest = fitting.bit_length() - 1
                alike = by_length[longest]
                while alike and (alike[-1] < place or used[alike[-1]]):
                    alike.pop()  # taken already
                if not alike:
                    remaining &= ~(1 << longest)
                    continue
                closing = alike.pop()
                used[closing] = 1
                places.append(closing)
                room -= longest
            sizes.append(len(places) - begun)
            room, begun = capacity, len(places)
        used[place] = 1
        places.append(place)
        room -= length
    if len(places) > begun:
        sizes.append(len(places) - begun)
    return np.asarray(places, dtype=np.int64), sizes
