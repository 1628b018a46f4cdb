"""Spans of a whole batch found in one search are those found row by row, and places out of order are looked at so."""

from __future__ import annotations

import numpy as np
import pytest

from dumbo.formatter import examples
from dumbo.formatter.encode import Encoded, Rendered
from dumbo.formatter.examples import Marked, _one_by_one, examples_of, marks
from dumbo.interfaces import BadRow, Source


def drawn_row(drawn) -> tuple[Encoded, Rendered]:
    """A text of up to 40 characters; tokens of several characters, of none, and several to one character."""
    size = int(drawn.integers(0, 40))
    cuts = np.sort(drawn.integers(0, size + 1, int(drawn.integers(0, 30)))) if size else np.zeros(0, np.int64)
    starts, ends = cuts[:-1], cuts[1:]
    if drawn.random() < 0.5:  # tokens that share a character
        starts, ends = np.repeat(starts, 2), np.repeat(ends, 2)
    edges = np.sort(drawn.integers(0, size + 1, 2 * int(drawn.integers(0, 4)))).reshape(-1, 2).tolist()
    spans = tuple((a, b) for a, b in edges)
    reply = spans[-1] if spans and drawn.random() < 0.8 else None
    row = Rendered("x" * size, spans, reply, all_tokens=bool(drawn.random() < 0.2))
    return Encoded(np.arange(len(starts), dtype=np.int32), starts, ends), row


def same(one: Marked, other: Marked) -> bool:
    return np.array_equal(one.trained, other.trained) and (one.replies, one.crossed) == (other.replies, other.crossed)


def test_as_row_by_row():
    drawn = np.random.default_rng(0)
    for _ in range(400):
        pairs = [drawn_row(drawn) for _ in range(int(drawn.integers(1, 12)))]
        encodings, rows = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        assert same(marks(encodings, rows), _one_by_one(encodings, rows))


def test_places_out_of_order(monkeypatch):
    encoded = Encoded(np.arange(3, dtype=np.int32), np.asarray([4, 0, 2]), np.asarray([6, 2, 4]))
    row = Rendered("x" * 6, ((2, 6),), (2, 6))
    monkeypatch.setattr(examples, "_searched", None)
    found = marks([encoded, encoded], [row, row])
    assert found.trained.tolist() == [False, False, True] * 2  # never the first of a row
    assert found.replies == [(0, 3), (0, 3)]


@pytest.mark.parametrize("bad", [(), (0,), (1, 2), (0, 1, 2)])
def test_bad_rows_stay_where_they_are(bad):
    from dumbo.model.tiny import Tiny

    rows = [
        BadRow(Source("x", n), "bad") if n in bad else (Source("x", n), Rendered(f"row {n}", all_tokens=True), {})
        for n in range(3)
    ]
    found = examples_of(rows, Tiny().load_tokenizer())
    assert [item.source.row for item in found] == [0, 1, 2]
    assert [isinstance(item, BadRow) for item in found] == [n in bad for n in range(3)]
