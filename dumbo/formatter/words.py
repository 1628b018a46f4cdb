"""Token ids of texts from a table of words: what a byte-level BPE tokenizer makes of a text, several times as fast.

Such a tokenizer cuts a text into words by a regular expression and looks at each word alone, so that a word that was
seen before need not be looked at again. Here the cutting is done by arrays (`cutting.py`; for some patterns by Python's
`re`), all words of a batch are looked up in one table, and ids and places come out as arrays, without an object for each
token. A word that is new is put to the tokenizer's own model: no merge is computed here.

Only tokenizers whose every part is known to work like that get a table (`Words.of`), and only texts of characters
whose class no Unicode version disputes are cut here; all others take the tokenizer's own way. Tests compare both ways
on real rows with real tokenizers, and on every one of those characters.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dumbo.formatter.cutting import PRIVATE_UNITS, Cutter
from dumbo.formatter.word_patterns import GPT2, GPT2_BETWEEN_DIGITS, STEADY, pattern_of, translated

if TYPE_CHECKING:
    from numpy.typing import NDArray

Piece = tuple["NDArray[np.int32]", "NDArray[np.int64]", "NDArray[np.int64]"]
"""Token ids (T,), the character where each starts (T,), and where each ends (T,)."""

MOST_TOKENS = 1 << 22
"""The table is emptied when it holds more."""
AT_ONCE = 1 << 16
"""Characters whose words are looked up in one step: their arrays stay in a core's cache."""


class Words:
    """The table of one tokenizer.

    Args:
        backend: the tokenizer of the library tokenizers.
        pattern: cuts a text without added tokens into words, in Python's `re`.
        lone_digits: for a `Cutter`, which cuts as the pattern does and faster; None where there is none.
    """

    def __init__(self, backend: Any, pattern: str, lone_digits: bool | None = None) -> None:
        from tokenizers import pre_tokenizers

        self._backend = backend
        self._byte_level: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._find: Callable[[str], list[str]] = re.compile(pattern).findall
        self._strange = re.compile(
            "[^" + "".join(f"{chr(a)}-{chr(b)}" for a, b in STEADY if a) + "\\x00-\u017e]"
        ).search
        self._added = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})").split
        self._lone_digits = lone_digits if len(self._added) < PRIVATE_UNITS else None
        self._empty()

    @classmethod
    def of(cls, backend: Any) -> Words | None:
        """The table of a tokenizer; None where it does more than cut words and merge bytes."""
        known = pattern_of(backend)
        pattern = translated(known) if known is not None else None
        if pattern is None:
            return None
        return cls(backend, pattern, {GPT2: False, GPT2_BETWEEN_DIGITS: True}.get(str(known)))

    def encode(self, texts: Sequence[str]) -> list[Piece | None]:
        """Each text's tokens; None where the tokenizer itself has to look at it."""
        found: list[Piece | None] = [None] * len(texts)
        if self._backend.truncation is not None or self._backend.padding is not None:
            return found
        if len(self._ids) > MOST_TOKENS:
            self._empty()
        group: list[int] = []
        chars = 0
        for number, text in enumerate(texts):
            if text.isascii() or self._strange(text) is None:
                group.append(number)
                chars += len(text)
            if group and (chars > AT_ONCE or number == len(texts) - 1):
                pieces = self._pieces([texts[number] for number in group])
                for place, piece in zip(group, pieces, strict=True):
                    found[place] = piece
                group, chars = [], 0
        return found

    def _pieces(self, texts: Sequence[str]) -> list[Piece | None]:
        parts = [self._split(text) for text in texts]
        if self._cutter is not None:
            return self._gathered(texts, *self._cutter.cut(parts))
        words: list[str] = []
        bounds = [0]
        for text in parts:
            for place, part in enumerate(text):
                if place & 1:
                    words.append(part)
                elif part:
                    words += self._find(part)
            bounds.append(len(words))
        numbers = np.fromiter(map(self._numbers.__getitem__, words), np.int64, len(words))
        return self._gathered(texts, numbers, np.asarray(bounds))

    def _gathered(
        self, texts: Sequence[str], numbers: NDArray[np.int64], bounds: NDArray[np.int64]
    ) -> list[Piece | None]:
        """The rows of the table that belong to the words of each text, end to end."""
        table = self._as_arrays()
        counts = table["counts"][numbers]
        tokens = np.concatenate([[0], np.cumsum(counts)])
        chars = np.concatenate([[0], np.cumsum(table["chars"][numbers])])
        places = np.repeat(table["first"][numbers] - tokens[:-1], counts) + np.arange(tokens[-1])
        texts_begin = np.repeat(chars[bounds[:-1]], np.diff(bounds))
        shift = np.repeat(chars[:-1] - texts_begin, counts)
        ids = table["ids"][places]
        starts, ends = table["starts"][places] + shift, table["ends"][places] + shift
        bad = np.flatnonzero(counts == 0)  # words that the model does not take
        edges, lengths = tokens[bounds].tolist(), np.diff(chars[bounds]).tolist()
        spoilt = set((np.searchsorted(bounds, bad, side="right") - 1).tolist())
        return [
            (ids[a:b], starts[a:b], ends[a:b]) if length == len(text) and number not in spoilt else None
            for number, (text, length, (a, b)) in enumerate(zip(texts, lengths, pairwise(edges), strict=True))
        ]

    # ---- the table --------------------------------------------------------------------------------------------

    def _empty(self) -> None:
        self._numbers = _Numbers(self._look)
        self._ids, self._starts, self._ends = array("i"), array("i"), array("i")
        self._first, self._counts, self._chars = array("q"), array("q"), array("q")
        self._arrays: dict[str, NDArray[Any]] = {}
        self._cutter = (
            Cutter(self._added, self._numbers.__getitem__, lone_digits=self._lone_digits)
            if self._lone_digits is not None
            else None
        )

    def _look(self, word: str) -> int:
        """A new word's number; the tokenizer's model says what its tokens are."""
        self._arrays = {}  # views of the lists, which cannot grow while there are any
        number = len(self._first)
        self._first.append(len(self._ids))
        self._chars.append(len(word))
        if word in self._added:
            found = [(self._added[word], 0, len(word))]
        else:
            found = self._tokens(word)
        self._counts.append(len(found))
        for token, start, end in found:
            self._ids.append(token)
            self._starts.append(start)
            self._ends.append(end)
        return number

    def _tokens(self, word: str) -> list[tuple[int, int, int]]:
        """(id, first character, last + 1) of each token; none where they do not make up the word."""
        ((mapped, _),) = self._byte_level.pre_tokenize_str(word)
        of_byte = [place for place, char in enumerate(word) for _ in char.encode()]
        found, at = [], 0
        for token in self._backend.model.tokenize(mapped):
            end = at + len(token.value)
            if mapped[at:end] != token.value:
                return []
            found.append((token.id, of_byte[at], of_byte[end - 1] + 1))
            at = end
        return found if at == len(mapped) else []

    def _as_arrays(self) -> dict[str, NDArray[Any]]:
        if not self._arrays:
            columns = {"ids": self._ids, "starts": self._starts, "ends": self._ends}
            self._arrays = {name: _view(column, np.int32) for name, column in columns.items()}
            columns = {"first": self._first, "counts": self._counts, "chars": self._chars}
            self._arrays |= {name: _view(column, np.int64) for name, column in columns.items()}
        return self._arrays


def _view(column: array[int], dtype: Any) -> NDArray[Any]:
    return np.frombuffer(column, dtype) if column else np.zeros(0, dtype)


class _Numbers(dict[str, int]):
    """Word -> its number in the table; asks for the ones it does not know."""

    def __init__(self, look: Callable[[str], int]) -> None:
        super().__init__()
        self._look = look

    def __missing__(self, word: str) -> int:
        number = self[word] = self._look(word)
        return number
