"""Rendered rows -> examples: tokens, which of them bear the loss, where the reply lies. What all formatters end with.

A batch at a time: tokens of all rows lie end to end, characters too, and one search finds the first and last token of
every span. That takes places in order, which tokenizers may give otherwise: then each row is looked at alone (`encode.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dumbo.formatter.encode import Encoded, Rendered, crossing, encode, token_span, trained_mask
from dumbo.interfaces import IGNORE, BadRow, Example, Source

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Marked:
    """What spans of characters are in tokens, for the rows of a batch end to end.

    Attributes:
        trained: (N,) which tokens bear the loss.
        replies: [first, last + 1) of each row's reply, counted from the row's first token; None where it has none.
        crossed: of each row, how many tokens cross the start of a trained span.
    """

    trained: NDArray[np.bool_]
    replies: list[tuple[int, int] | None]
    crossed: list[int]


def examples_of(
    rows: Sequence[tuple[Source, Rendered, dict[str, int]] | BadRow], tokenizer: PreTrainedTokenizerBase
) -> list[Example | BadRow]:
    """Tokenises rows and masks them; bad ones stay where they are. `boundary_tokens` joins a row's counts."""
    good = [row for row in rows if not isinstance(row, BadRow)]
    if not good:
        return list(rows)  # type: ignore[arg-type]
    texts = [text for _, text, _ in good]
    encodings = encode(texts, tokenizer)
    marked = marks(encodings, texts)
    ids = np.concatenate([encoded.ids for encoded in encodings])
    labels = np.where(marked.trained, ids, np.int32(IGNORE))
    edges = _edges(encodings).tolist()
    examples = []
    for (source, _, counts), start, end, reply, crossed in zip(
        good, edges, edges[1:], marked.replies, marked.crossed, strict=False
    ):
        if crossed:
            counts["boundary_tokens"] = crossed
        examples.append(Example(ids[start:end], labels[start:end], source, reply, counts))
    made = iter(examples)
    return [row if isinstance(row, BadRow) else next(made) for row in rows]


def marks(encodings: Sequence[Encoded], rows: Sequence[Rendered]) -> Marked:
    """Where the spans of the rows lie in their tokens."""
    lengths = np.fromiter((len(encoded.ids) for encoded in encodings), np.int64, len(encodings))
    room = np.fromiter((len(row.text) + 1 for row in rows), np.int64, len(rows))  # one character apart
    begins = np.cumsum(room) - room
    shift = np.repeat(begins, lengths)
    starts = np.concatenate([encoded.starts for encoded in encodings]) + shift
    ends = np.concatenate([encoded.ends for encoded in encodings]) + shift
    if not (_in_order(starts) and _in_order(ends)):
        return _one_by_one(encodings, rows)
    return _searched(starts, ends, begins, _edges(encodings), rows)


def _searched(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    begins: NDArray[np.int64],
    edges: NDArray[np.int64],
    rows: Sequence[Rendered],
) -> Marked:
    owners = [number for number, row in enumerate(rows) for _ in row.trained]
    spans = np.asarray([span for row in rows for span in row.trained], np.int64).reshape(-1, 2)
    spans += begins[owners, None]
    first, last = np.searchsorted(starts, spans[:, 0]), np.searchsorted(starts, spans[:, 1])
    steps = np.bincount(first, minlength=len(starts) + 1) - np.bincount(last, minlength=len(starts) + 1)
    trained = (np.cumsum(steps[:-1]) > 0) & (ends > starts)
    for number, row in enumerate(rows):
        if row.all_tokens:
            trained[edges[number] : edges[number + 1]] = True
    trained[edges[:-1][np.diff(edges) > 0]] = False  # nothing precedes a row's first token
    over = np.maximum(first - np.searchsorted(ends, spans[:, 0], side="right"), 0)
    crossed = np.bincount(owners, weights=over, minlength=len(rows)).astype(np.int64) if over.any() else None
    said = np.asarray([row.reply or (0, 0) for row in rows], np.int64) + begins[:, None]
    at = (np.searchsorted(starts, said) - edges[:-1, None]).tolist()
    return Marked(
        trained,
        [(a, b) if b > a and row.reply is not None else None for (a, b), row in zip(at, rows, strict=True)],
        crossed.tolist() if crossed is not None else [0] * len(rows),
    )


def _one_by_one(encodings: Sequence[Encoded], rows: Sequence[Rendered]) -> Marked:
    pairs = list(zip(encodings, rows, strict=True))
    return Marked(
        np.concatenate([trained_mask(encoded, row) for encoded, row in pairs]),
        [token_span(encoded, row.reply) for encoded, row in pairs],
        [crossing(encoded, row) for encoded, row in pairs],
    )


def _in_order(places: NDArray[np.int64]) -> bool:
    return bool((places[1:] >= places[:-1]).all())


def _edges(encodings: Sequence[Encoded]) -> NDArray[np.int64]:
    """(rows + 1,) where each row's tokens begin."""
    return np.cumsum([0, *(len(encoded.ids) for encoded in encodings)])
