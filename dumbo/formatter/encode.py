"""Text -> token ids and where each token starts, and from character spans to trained tokens.

The tokenizer adds nothing: ids equal `encode(text, add_special_tokens=False)`. A token that crosses a span's
border is trained if it starts inside (byte-level vocabularies merge a newline with the space after it).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dumbo.formatter.words import Piece, Words

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

CHECKED = 64
"""So many texts that were cut into words, and one of them is put to the tokenizer too."""

Span = tuple[int, int]
"""[start, end) in characters."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as text.

    Attributes:
        text: what is tokenised.
        trained: character spans that bear the loss, in order, apart.
        reply: the span of the last assistant turn, or None.
        literal: stretches between control tokens, in which nothing may become a control token though it looks so.
        all_tokens: train every token, `trained` aside.
    """

    text: str
    trained: tuple[Span, ...] = ()
    reply: Span | None = None
    literal: tuple[Span, ...] = ()
    all_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids (T,), the character where each starts (T,), and where each ends (T,)."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


def encode(rows: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Tokenises a batch: by words where that gives the same (`words.py`), else in Rust threads; literal spans one by one."""
    found = _by_words([row.text for row in rows if not row.literal], tokenizer)
    return [_with_literals(row, tokenizer) if row.literal else next(found) for row in rows]


def _by_words(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[Encoded]:
    """Texts that the table of words does not take go to the tokenizer itself, all at once."""
    backend = tokenizer.backend_tokenizer
    words = _words_of(tokenizer, len(tokenizer))
    pieces = words.encode(texts) if words is not None else [None] * len(texts)
    _require_the_same(texts, pieces, backend)
    left = [text for text, piece in zip(texts, pieces, strict=True) if piece is None]
    encodings = iter(backend.encode_batch(left, add_special_tokens=False))
    return (Encoded(*piece) if piece is not None else _arrays(next(encodings)) for piece in pieces)


def _require_the_same(texts: Sequence[str], pieces: Sequence[Piece | None], backend: Tokenizer) -> None:
    """The first text of each batch and every 64th after it, the tokenizer's own way: a table that errs must not train."""
    for text, piece in list(zip(texts, pieces, strict=True))[::CHECKED]:
        if piece is not None:
            own, found = _arrays(backend.encode(text, add_special_tokens=False)), Encoded(*piece)
            same = all(np.array_equal(getattr(own, name), getattr(found, name)) for name in Encoded.__slots__)
            if not same:  # not an assert: it holds under python -O too
                raise AssertionError(f"tokens by words differ from the tokenizer's own: {text[:200]!r}")


@functools.lru_cache(maxsize=4)
def _words_of(tokenizer: PreTrainedTokenizerBase, size: int) -> Words | None:
    """A tokenizer's table; another one when tokens were added."""
    return Words.of(tokenizer.backend_tokenizer)


def _arrays(encoding: object, offset: int = 0) -> Encoded:
    ids = np.asarray(encoding.ids, dtype=np.int32)  # type: ignore[attr-defined]
    places = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2) + offset  # type: ignore[attr-defined]
    return Encoded(ids, places[:, 0], places[:, 1])


def _with_literals(row: Rendered, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Literal stretches are encoded with control tokens switched off, the rest as always.

    They reach from one control token to the next: a tokenizer splits the text there itself, so that cutting there
    changes no token.
    """
    backend = tokenizer.backend_tokenizer
    parts, position = [], 0
    for start, end in (*row.literal, (len(row.text), len(row.text))):
        if position < start:
            parts.append(_arrays(backend.encode(row.text[position:start], add_special_tokens=False), position))
        if start < end:
            backend.encode_special_tokens = True  # "encode the text of special tokens as text"
            try:
                parts.append(_arrays(backend.encode(row.text[start:end], add_special_tokens=False), start))
            finally:
                backend.encode_special_tokens = False
        position = end
    if not parts:
        return Encoded(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    return Encoded(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "starts", "ends")))


def trained_mask(encoded: Encoded, row: Rendered) -> NDArray[np.bool_]:
    """(T,) which tokens bear the loss; position 0 never does (nothing precedes it)."""
    if row.all_tokens:
        mask = np.ones(len(encoded.ids), dtype=bool)
    else:
        mask = np.zeros(len(encoded.ids), dtype=bool)
        for start, end in row.trained:
            mask |= (encoded.starts >= start) & (encoded.starts < end) & (encoded.ends > encoded.starts)
    if len(mask):
        mask[0] = False
    return mask


def token_span(encoded: Encoded, span: Span | None) -> tuple[int, int] | None:
    """[first, last + 1) of the tokens that start inside a character span; None when there are none."""
    if span is None:
        return None
    inside = np.flatnonzero((encoded.starts >= span[0]) & (encoded.starts < span[1]))
    return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else None


def crossing(encoded: Encoded, row: Rendered) -> int:
    """How many tokens cross the start of a trained span: they start before it and so are not trained."""
    return sum(int(np.count_nonzero((encoded.starts < start) & (encoded.ends > start))) for start, _ in row.trained)
