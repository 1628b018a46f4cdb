"""Documents -> the tensors of a micro batch. Padding is known by length, never by the pad token's id.

packed      one token axis (1, T): documents end to end, position_ids restarting, cu_seq_lens where they begin; with
            `room` T is the same for every batch
packed rows (B, T): one pack a row, for models whose attention isolates documents by position_ids alone
padded      (B, T): one document a row, right-padded
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dumbo.interfaces import IGNORE
from dumbo.prepare.packing import Packs
from dumbo.prepare.store import Store

Layout = Literal["tokens", "rows", "padded"]
BOUNDS_IN = 64
"""With room, the number of documents is a multiple of this: empty ones at the end fill it up. Many more would cost."""
PLACES_IN = 16
"""With few kinds of batch, the places that bear a loss are a multiple of the room's share."""
PADDING = 2048
"""Padding past the documents is cut into documents of so many tokens at most: attention's time grows with their squares."""
SHORTEST_TOLD = 256
"""Below this a grid of attention has hardly a block to spare."""


@dataclass(frozen=True)
class Examples(torch.utils.data.Dataset[NDArray[np.int64]]):
    """What the sampler's numbers stand for: packs, or single documents.

    Attributes:
        documents: (n,) document numbers when there are no packs.
    """

    packs: Packs | None
    documents: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.packs) if self.packs is not None else len(self.documents)

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        """The documents of one example."""
        return self.packs[index] if self.packs is not None else self.documents[index : index + 1]


@dataclass(frozen=True)
class Room:
    """What the token axis of every batch has room for, so that compiled layers see one shape.

    Attributes:
        tokens: its length; what the documents leave of it is padding.
        longest: tokens of the longest document there can be; padding is cut into documents of at most that, and `PADDING`.
        few_kinds: places that bear a loss, and the longest document that attention is told of, are rounded up, so that
            batches come in few kinds (for `graphs.py`).
    """

    tokens: int
    longest: int
    few_kinds: bool = False

    def of(self, micro: int) -> Room:
        """Room for so many packs or documents."""
        return replace(self, tokens=micro * self.longest)

    def holding(self, lengths: Sequence[int]) -> Room:
        """This room, or a larger one, for documents of these lengths."""
        longest = max(self.longest, *lengths)
        tokens = self.tokens if sum(lengths) <= self.tokens else longest * math.ceil(sum(lengths) / longest)
        return replace(self, tokens=tokens, longest=longest)

    def left_by(self, total: int) -> list[int]:
        """Lengths of the documents that padding consists of, past `total` tokens."""
        assert total <= self.tokens, f"{total} tokens are packed where there is room for {self.tokens}"
        piece = min(self.longest, PADDING)
        whole, rest = divmod(self.tokens - total, piece)
        return [piece] * whole + [rest] * (rest > 0)

    def told(self, longest: int) -> int:
        """The length that attention is told of: it only sizes a grid by it, most of which would be empty at `longest`."""
        if not self.few_kinds:
            return self.longest
        told = self.longest
        while (less := told // 2) >= max(longest, SHORTEST_TOLD):
            told = less
        return told

    def places(self, amount: int) -> int:
        """How many places are said to bear a loss where `amount` do."""
        step = max(1, self.tokens // PLACES_IN)
        return min(self.tokens, -(-amount // step) * step) if self.few_kinds else amount


@dataclass(frozen=True)
class Collate:
    """Makes a micro batch of examples.

    Args:
        store: where the documents are.
        layout: see the module.
        pad_id: what fills padding (never looked at).
        room: of layout tokens; None: as long as the documents are.
        places: also say, under `loss_at`, which tokens bear a loss: (n,) places in the flattened batch, of the tokens
            before the labelled ones.
    """

    store: Store
    layout: Layout
    pad_id: int
    room: Room | None = None
    places: bool = False

    def of(self, micro: int) -> Collate:
        """With room, if there is one, for micro batches of another size."""
        return self if self.room is None else replace(self, room=self.room.of(micro))

    def __call__(self, examples: Sequence[NDArray[np.int64]]) -> dict[str, Any]:
        """Tensors for the model, and under `documents` the numbers of the documents, for reports.

        No examples: a row that bears no loss, for a rank that ran out of them before the others did.
        """
        if not examples:
            return self._unlabelled()
        if self.layout == "tokens":
            batch = self._tokens(np.concatenate(list(examples)))
        elif self.layout == "rows":
            batch = self._rows(examples)
        else:
            batch = self._padded([int(example[0]) for example in examples])
        batch["documents"] = np.concatenate(list(examples))
        return self._with_places(batch)

    def _with_places(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.places:
            targets = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE)
            places = torch.nonzero(targets.flatten() != IGNORE).flatten()
            if self.room is not None:  # the last token has nothing after it: as often as one likes, it bears no loss
                more = self.room.places(len(places)) - len(places)
                places = torch.nn.functional.pad(places, (0, more), value=targets.numel() - 1)
            batch["loss_at"] = places
        return batch

    def _unlabelled(self) -> dict[str, Any]:
        shortest = int(np.argmin(self.store.lengths))
        batch = self([np.array([shortest])])
        batch["labels"] = torch.full_like(batch["labels"], IGNORE)
        batch["documents"] = np.array([], dtype=np.int64)
        return self._with_places(batch)

    def _tokens(self, documents: NDArray[np.int64]) -> dict[str, Any]:
        lengths = np.asarray(self.store.lengths[documents], np.int64)
        ids, labels = self._joined(documents)
        longest = int(lengths.max())
        if self.room is not None:
            past = self.room.left_by(int(lengths.sum()))
            ids, labels = (
                torch.nn.functional.pad(tensor, (0, sum(past)), value=filling)
                for tensor, filling in ((ids, self.pad_id), (labels, IGNORE))
            )
            lengths = np.concatenate([lengths, np.array(past, np.int64)])
            lengths = np.pad(lengths, (0, -len(lengths) % BOUNDS_IN))
            longest = self.room.told(int(lengths.max()))
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        boundaries = torch.from_numpy(ends)
        return {
            "input_ids": ids[None],
            "labels": labels[None],
            "position_ids": torch.from_numpy(_positions(lengths))[None],
            "cu_seq_lens_q": boundaries,
            "cu_seq_lens_k": boundaries,
            "max_length_q": longest,
            "max_length_k": longest,
        }

    def _rows(self, examples: Sequence[NDArray[np.int64]]) -> dict[str, Any]:
        totals = [int(self.store.lengths[example].sum()) for example in examples]
        ids, labels = self._empty(len(examples), max(totals))
        positions = torch.zeros_like(ids)
        for row, (example, total) in enumerate(zip(examples, totals, strict=True)):
            ids[row, :total], labels[row, :total] = self._joined(example)
            rest = ids.shape[1] - total
            lengths = np.concatenate([self.store.lengths[example], [rest]]) if rest else self.store.lengths[example]
            positions[row] = torch.from_numpy(_positions(lengths))
        return {"input_ids": ids, "labels": labels, "position_ids": positions}

    def _padded(self, documents: Sequence[int]) -> dict[str, Any]:
        lengths = [int(self.store.lengths[d]) for d in documents]
        ids, labels = self._empty(len(documents), max(lengths))
        mask = torch.zeros_like(ids)
        for row, (document, length) in enumerate(zip(documents, lengths, strict=True)):
            ids[row, :length] = torch.from_numpy(self.store.ids(document))
            labels[row, :length] = torch.from_numpy(self.store.labels(document))
            mask[row, :length] = 1
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    def _joined(self, documents: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """(T,) ids and (T,) labels of documents end to end."""
        numbers = documents.tolist()
        ids = np.concatenate([self.store.ids(document) for document in numbers])
        labels = np.concatenate([self.store.labels(document) for document in numbers])
        return torch.from_numpy(ids), torch.from_numpy(labels)

    def _empty(self, rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.full((rows, width), self.pad_id, dtype=torch.long)
        return ids, torch.full_like(ids, IGNORE)


def leave_documents_free(batch: dict[str, Any]) -> None:
    """Compiled layers are to take any number of documents; all else about a batch with room is the same each time.

    Args:
        batch: on its device, as the model gets it (a tensor forgets the mark when it is moved).
    """
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        if name in batch:
            torch._dynamo.maybe_mark_dynamic(batch[name], 0)


def _positions(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(T,) positions counting from 0 in each document."""
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.arange(int(lengths.sum())) - starts
