"""Token ids of texts from a table of words: what a byte-level BPE tokenizer makes of a text, several times as fast.

Such a tokenizer cuts a text into words by a regular expression and looks at each word alone, so that a word that was
seen before need not be looked at again. Here the cutting is done by Python's `re`, all words of a batch are looked up
in one table, and ids and places come out as arrays, without an object for each token. A word that is new is put to
the tokenizer's own model: no merge is computed here.

Only tokenizers whose every part is known to work like that get a table (`Words.of`), and only texts of characters
whose class no Unicode version disputes are cut here; all others take the tokenizer's own way. Tests compare both ways
on real rows with real tokenizers, and on every one of those characters.
"""

from __future__ import annotations

import json
import re
import unicodedata
from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Piece = tuple["NDArray[np.int32]", "NDArray[np.int64]", "NDArray[np.int64]"]
"""Token ids (T,), the character where each starts (T,), and where each ends (T,)."""

STEADY = ((0x00, 0x17E), (0x180, 0x24F), (0x2010, 0x2027), (0x2030, 0x205E), (0x20A0, 0x20BF))
"""Code points assigned long ago that no normalisation changes: Latin, punctuation, currencies (U+017F is an s)."""
SPACES = "\\t-\\r \\x85\\xa0"
"""White space among them, inside a class."""
MOST_TOKENS = 1 << 22
"""The table is emptied when it holds more."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How ByteLevel cuts words."""
GPT2_BETWEEN_DIGITS = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""The same where each digit was taken out before: what stands before a digit is at the end of its text."""


class Words:
    """The table of one tokenizer.

    Args:
        backend: the tokenizer of the library tokenizers.
        pattern: cuts a text without added tokens into words.
    """

    def __init__(self, backend: Any, pattern: str) -> None:
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
        self._empty()

    @classmethod
    def of(cls, backend: Any) -> Words | None:
        """The table of a tokenizer; None where it does more than cut words and merge bytes."""
        pattern = _pattern_of(_state(backend.pre_tokenizer))
        if pattern is None or not _merges_bytes(backend.model) or not _keeps_places(_state(backend.post_processor)):
            return None
        normalizer = _state(backend.normalizer)
        if normalizer is not None and normalizer["type"] != "NFC":
            return None
        added = backend.get_added_tokens_decoder().values()
        if any(token.lstrip or token.rstrip or token.single_word or token.normalized for token in added):
            return None
        return cls(backend, pattern)

    def encode(self, texts: Sequence[str]) -> list[Piece | None]:
        """Each text's tokens; None where the tokenizer itself has to look at it."""
        if self._backend.truncation is not None or self._backend.padding is not None:
            return [None] * len(texts)
        if len(self._ids) > MOST_TOKENS:
            self._empty()
        words: list[str] = []
        bounds = [0]
        for text in texts:
            if text.isascii() or self._strange(text) is None:
                for place, part in enumerate(self._split(text)):
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

    def _look(self, word: str) -> int:
        """A new word's number; the tokenizer's model says what its tokens are."""
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
        self._arrays = {}
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
            self._arrays = {name: np.array(column, dtype=np.int32) for name, column in columns.items()}
            columns = {"first": self._first, "counts": self._counts, "chars": self._chars}
            self._arrays |= {name: np.array(column, dtype=np.int64) for name, column in columns.items()}
        return self._arrays


class _Numbers(dict[str, int]):
    """Word -> its number in the table; asks for the ones it does not know."""

    def __init__(self, look: Callable[[str], int]) -> None:
        super().__init__()
        self._look = look

    def __missing__(self, word: str) -> int:
        number = self[word] = self._look(word)
        return number


# ---- which tokenizers work like that --------------------------------------------------------------------------


def _state(part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as tokenizer.json has it."""
    return json.loads(part.__getstate__()) if part is not None else None


def _merges_bytes(model: Any) -> bool:
    """Whether a model is BPE without chance and without marks of its own on words."""
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    return (
        type(model).__name__ == "BPE"
        and not model.dropout
        and not model.byte_fallback
        and not any(getattr(model, affix) for affix in affixes)
    )


def _keeps_places(state: dict[str, Any] | None) -> bool:
    """Whether what follows the model leaves the tokens' places alone (trimming moves them past spaces)."""
    if state is None:
        return True
    if state["type"] == "Sequence":
        return all(_keeps_places(part) for part in state["processors"])
    return state["type"] == "TemplateProcessing" or (state["type"] == "ByteLevel" and not state["trim_offsets"])


def _pattern_of(state: dict[str, Any] | None) -> str | None:
    """The words of a pre-tokenizer as a pattern of Python's `re`; None where it is of another kind."""
    if state is None:
        return None
    parts = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    last = parts[-1]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if len(parts) == 1:
        return _translated(GPT2) if last["use_regex"] else None
    if len(parts) != 2:
        return None
    first = parts[0]
    if first == {"type": "Digits", "individual_digits": True} and last["use_regex"]:
        return _translated(GPT2_BETWEEN_DIGITS)
    isolated = first["type"] == "Split" and first["behavior"] == "Isolated" and not first["invert"]
    if isolated and "Regex" in first["pattern"] and not last["use_regex"]:
        return _translated(first["pattern"]["Regex"])
    return None


def _translated(pattern: str) -> str | None:
    r"""An Oniguruma pattern in Python's `re`, over STEADY; None where it uses more than \p{L}, \p{N} and \s."""
    plain = re.sub(r"\\p\{\w+\}", "P", pattern)
    if re.search(r"[}+*?]\+|&&|\[\[|\(\?(?!:|i:|!|=)", plain):
        return None  # possessive repeats, set operations, other groups: the two engines might read them differently
    classes = {"\\p{L}": _class("L"), "\\p{N}": _class("N"), "\\s": SPACES}
    done, inside = [], False
    for token in re.findall(r"\\p\{\w+\}|\\.|.", pattern, re.DOTALL):
        if token in classes:
            done.append(classes[token] if inside else f"[{classes[token]}]")
        elif token == "\\S" and not inside:
            done.append(f"[^{SPACES}]")
        elif token.startswith("\\") and token not in ("\\r", "\\n"):
            return None
        else:
            inside = (inside or token == "[") and token != "]"
            done.append(token)
    return "".join(done)


def _class(category: str) -> str:
    """The steady characters of a Unicode category, as ranges inside a class."""
    points = [point for a, b in STEADY for point in range(a, b + 1) if unicodedata.category(chr(point))[0] == category]
    ranges: list[list[int]] = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "".join(f"{chr(a)}-{chr(b)}" for a, b in ranges)
