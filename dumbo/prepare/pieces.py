"""Rows of tokens -> pieces of at most so many tokens, for all rows of a batch at once. parts.py stores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dumbo.interfaces import IGNORE, Example


@dataclass(frozen=True, slots=True)
class Tokens:
    """The rows of a batch end to end.

    Attributes:
        ids: (N,) token ids.
        trained: (N,) which tokens bear the loss.
        edges: (rows + 1,) where each row begins.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    edges: NDArray[np.int64]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Tokens:
        """Raises AssertionError for labels that are not unshifted ids."""
        rows = [np.asarray(example.input_ids, dtype=np.int32) for example in examples]
        marks = [np.asarray(example.labels, dtype=np.int32) for example in examples]
        assert [len(row) for row in rows] == [len(row) for row in marks], "a label for each token"
        edges = np.cumsum([0, *map(len, rows)])
        ids, labels = np.concatenate(rows), np.concatenate(marks)
        trained = labels != IGNORE
        assert not trained[edges[:-1][np.diff(edges) > 0]].any(), "labels must be -100 at position 0"
        assert np.array_equal(labels[trained], ids[trained]), "labels must be unshifted ids"
        return cls(ids, trained, edges)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The documents that become of rows.

    Attributes:
        row: (P,) whose piece each is, in order.
        start, end: (P,) where it lies in the tokens of the batch.
        bearing: (N,) which tokens bear the loss, the first of a piece never.
        labelled: (P,) how many of each do; at least one.
        replies: (P, 2) the last assistant turn, from the piece's start; -1 where it is not whole.
        too_long: row -> what the audit counts of it.
    """

    row: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    bearing: NDArray[np.bool_]
    labelled: NDArray[np.int64]
    replies: NDArray[np.int64]
    too_long: dict[int, dict[str, int]]


def pieces_of(tokens: Tokens, examples: Sequence[Example], max_seq_len: int, too_long: str) -> Pieces:
    """The documents that become of some rows.

    Args:
        max_seq_len: longest document, in tokens.
        too_long: what becomes of a longer one: truncate_right, truncate_left, drop, split.
    """
    lengths = np.diff(tokens.edges)
    rows, start, end = np.arange(len(lengths)), tokens.edges[:-1], tokens.edges[1:]
    noted: dict[int, dict[str, int]] = {}
    if len(lengths) and lengths.max() > max_seq_len:
        cut: list[tuple[int, int, int]] = []
        for row, (at, length) in enumerate(zip(start.tolist(), lengths.tolist(), strict=True)):
            kept, counts = _cuts(length, max_seq_len, too_long)
            cut += [(row, at + a, at + b) for a, b in kept]
            if counts:
                noted[row] = counts
        rows, start, end = np.asarray(cut, np.int64).reshape(-1, 3).T
    bearing = tokens.trained.copy()
    bearing[start[end > start]] = False
    before = np.concatenate([[0], np.cumsum(bearing)])
    labelled = before[end] - before[start]
    kept = labelled > 0
    rows, start, end, labelled = rows[kept], start[kept], end[kept], labelled[kept]
    replies = np.asarray([example.reply or (-1, -1) for example in examples], np.int64)[rows]
    moved = replies - (start - tokens.edges[rows])[:, None]
    moved[(moved[:, 0] <= 0) | (replies[:, 0] < 0) | (moved[:, 1] > end - start)] = -1
    return Pieces(rows, start, end, bearing, labelled, moved, noted)


def _cuts(length: int, longest: int, too_long: str) -> tuple[list[tuple[int, int]], dict[str, int]]:
    """The pieces of a row that are kept, [start, end) in tokens, and what the audit counts of one that is too long."""
    if length <= longest:
        return [(0, length)], {}
    if too_long == "drop":
        return [], {"too_long": 1, "dropped": 1}
    if too_long == "split":
        pieces = [(start, min(start + longest, length)) for start in range(0, length, longest)]
        return pieces, {"too_long": 1, "split": 1}
    kept = (0, longest) if too_long == "truncate_right" else (length - longest, length)
    return [kept], {"too_long": 1, "truncated": 1, "truncated_tokens": length - longest}
