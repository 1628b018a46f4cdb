r"""Where the words of texts begin, as arrays: what the patterns of GPT-2 find, without a step of Python for each word.

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

Texts come as UTF-16 units end to end. What is not text (added tokens, the ends of texts) stands among them as private
units, each a word of its own. Seen from a character, the pattern says:

- a word goes on with letters after letters, digits after digits, other signs after other signs;
- a blank before any of these belongs to their word, other white space never does;
- of several white space characters in a row the last is taken apart, where one of these follows;
- `'s` and the like are a word where `'` begins one, and letters after them begin another.

Tests compare this with the pattern itself, on real texts and on made-up ones.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from dumbo.formatter.word_index import LONGEST, UNKNOWN, WordIndex, keys_of
from dumbo.formatter.word_patterns import SPACES, STEADY, class_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIGN, LETTER, DIGIT, SPACE, PRIVATE = range(5)
FIRST_PRIVATE = 0xE000
PRIVATE_UNITS = 0xF8FF - FIRST_PRIVATE
END = chr(FIRST_PRIVATE)
"""Ends a text; the units after it stand for added tokens."""
BLANK, APOSTROPHE = ord(" "), ord("'")


class Cutter:
    """Cuts texts into words and gives each word's number.

    Args:
        added: the tokenizer's added tokens.
        number: of a word, asked once for each word of up to LONGEST units.
        lone_digits: each digit is a word, and white space before one is left whole (a pre-tokenizer took digits out).
    """

    def __init__(self, added: Iterable[str], number: Callable[[str], int], *, lone_digits: bool) -> None:
        self._number, self._lone_digits = number, lone_digits
        self._private = {token: chr(FIRST_PRIVATE + place) for place, token in enumerate(added, 1)}
        self._tokens = {unit: token for token, unit in self._private.items()}
        self._kinds = kinds_of(class_of("L"), class_of("N"), SPACES)
        self._index = WordIndex()

    def cut(self, texts: Iterable[list[str]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The words of texts, each given as the stretches between added tokens, with these in between.

        Returns:
            (words,) their numbers, and (texts + 1,) where each text's words begin.
        """
        joined: list[str] = []
        for parts in texts:
            parts[1::2] = map(self._private.__getitem__, parts[1::2])
            joined += parts
            joined.append(END)
        whole = "".join([*joined, END, END, "\0" * (LONGEST + 1)])
        units = np.frombuffer(whole.encode("utf-16-le"), np.uint16)
        size = len(units) - LONGEST - 1
        begins = words_begin(units[:size], self._kinds, lone_digits=self._lone_digits)
        lengths = np.diff(begins, append=size)
        is_word = units[begins] != FIRST_PRIVATE
        ends = np.flatnonzero(~is_word)[:-2]
        bounds = np.concatenate([[0], ends - np.arange(len(ends))])
        return self._numbers(whole, units, begins[is_word], lengths[is_word]), bounds

    def _numbers(
        self, whole: str, units: NDArray[np.uint16], begins: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        keys = keys_of(units, begins, np.where(lengths > LONGEST, 0, lengths))  # no word has the key of a long one
        numbers = self._index.find(keys)
        fresh: dict[str, int] = {}
        for place in np.flatnonzero(numbers == UNKNOWN).tolist():
            word = whole[begins[place] : begins[place] + lengths[place]]
            numbers[place] = self._number(self._tokens.get(word, word))
            if len(word) <= LONGEST:
                fresh.setdefault(word, place)
        if fresh:
            places = list(fresh.values())
            self._index.add(keys[:, places], numbers[places])
        return numbers


@functools.cache
def kinds_of(letters: str, digits: str, spaces: str) -> NDArray[np.uint8]:
    """(65536,) the kind of each unit, from the classes of a pattern (`a-z…`)."""
    kinds = np.full(1 << 16, SIGN, np.uint8)
    for kind, inside in ((LETTER, letters), (DIGIT, digits), (SPACE, spaces)):
        belongs = re.compile(f"[{inside}]").match
        kinds[[point for point in range(STEADY[-1][1] + 1) if belongs(chr(point))]] = kind
    kinds[FIRST_PRIVATE : FIRST_PRIVATE + PRIVATE_UNITS] = PRIVATE
    return kinds


def words_begin(units: NDArray[np.uint16], kinds: NDArray[np.uint8], *, lone_digits: bool) -> NDArray[np.int64]:
    """(words,) where each word begins.

    Args:
        units: (n,) the texts; the last three are private.
        kinds: of each possible unit.
        lone_digits: each digit is a word, and white space before one is left whole (a pre-tokenizer took digits out).
    """
    kind = kinds[units]
    begins = np.empty(len(kind), bool)
    begins[0] = True
    np.not_equal(kind[1:], kind[:-1], out=begins[1:])
    begins |= kind == PRIVATE
    if lone_digits:
        begins |= kind == DIGIT
    takes_blank = kind <= (LETTER if lone_digits else DIGIT)
    begins[1:] &= ~(takes_blank[1:] & (units[:-1] == BLANK))
    space = kind == SPACE
    begins[1:-1] |= space[1:-1] & space[:-2] & takes_blank[2:]
    _contractions(units, kind, begins)
    return np.flatnonzero(begins)


def _contractions(units: NDArray[np.uint16], kind: NDArray[np.uint8], begins: NDArray[np.bool_]) -> None:
    at = np.flatnonzero(units == APOSTROPHE)
    at = at[begins[at]]
    pairs = units[at + 1].astype(np.uint32) << 16 | units[at + 2]
    letters = np.where(_ONE[units[at + 1] & 0x7F] & (units[at + 1] < 0x80), 1, np.where(np.isin(pairs, _TWO), 2, 0))
    at, letters = at[letters > 0], letters[letters > 0]
    begins[at + 1] = False
    after = at + 1 + letters
    begins[after] |= kind[after] == LETTER


_ONE = np.isin(np.arange(0x80), [ord(letter) for letter in "stmd"])
_TWO = np.asarray([ord(first) << 16 | ord(second) for first, second in ("re", "ve", "ll")], np.uint32)
