"""Words -> their numbers in the table, all words of a batch in a few steps: a hash table of arrays.

A word is looked up by its own characters, and compared with what lies there: no two words are ever taken for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LANES = 3
LONGEST = 4 * LANES - 1
"""UTF-16 units of the longest word that is found here: a key holds as many, four a lane, and the length."""
MOST = 1 << 18
"""Words in the index; what comes later is looked up elsewhere."""
UNKNOWN = -1

_MASKS = np.asarray(
    [[sum(0xFFFF << 16 * n for n in range(4) if 4 * lane + n < length) for length in range(LONGEST + 1)] for lane in range(LANES)],
    np.uint64,
)  # fmt: skip
_ODD = np.asarray([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93], np.uint64)


def keys_of(units: NDArray[np.uint16], begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(LANES, words) the key of each word.

    Args:
        units: the texts, with LONGEST + 1 units more at the end.
        begins: (words,) where each begins.
        lengths: (words,) in units, at most LONGEST.
    """
    keys = np.empty((LANES, len(begins)), np.uint64)
    for lane in range(LANES):
        at_each = np.ndarray((len(units) - LONGEST,), np.uint64, units, offset=8 * lane, strides=(2,))
        np.bitwise_and(at_each[begins], _MASKS[lane][lengths], out=keys[lane])
    keys[-1] |= lengths.astype(np.uint64) << np.uint64(48)
    return keys


class WordIndex:
    """Key of a word -> number. No number is given twice."""

    def __init__(self) -> None:
        self._bits, self.words = 12, 0
        self._clear()

    def _clear(self) -> None:
        self._keys = np.zeros((LANES, 1 << self._bits), np.uint64)
        self._numbers = np.full(1 << self._bits, UNKNOWN, np.int64)

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """(n,) numbers of keys (LANES, n); UNKNOWN where there is none."""
        slots = self._slots(keys)
        found = self._numbers[slots]
        left = np.flatnonzero(self._others(slots, keys) & (found != UNKNOWN))
        slots = slots[left]
        while len(left):
            slots = (slots + 1) & (len(self._numbers) - 1)
            found[left] = self._numbers[slots]
            still = self._others(slots, keys[:, left]) & (found[left] != UNKNOWN)
            left, slots = left[still], slots[still]
        return found

    def add(self, keys: NDArray[np.uint64], numbers: NDArray[np.int64]) -> None:
        """Puts words in that `find` does not know, each once; those for which there is room."""
        keys, numbers = keys[:, : MOST - self.words], numbers[: MOST - self.words]
        self.words += len(numbers)
        if 3 * self.words > len(self._numbers):
            there = self._numbers != UNKNOWN
            keys = np.concatenate([self._keys[:, there], keys], axis=1)
            numbers = np.concatenate([self._numbers[there], numbers])
            while 3 * self.words > 1 << self._bits:
                self._bits += 2
            self._clear()
        slots = self._slots(keys)
        while len(slots):
            free = self._numbers[slots] == UNKNOWN
            self._numbers[slots[free]] = numbers[free]  # of several that want one place, the last has it
            here = self._numbers[slots] == numbers
            self._keys[:, slots[here]] = keys[:, here]
            slots, keys, numbers = (slots[~here] + 1) & (len(self._numbers) - 1), keys[:, ~here], numbers[~here]

    def _slots(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        mixed = keys[0] * _ODD[0]
        for lane in range(1, LANES):
            mixed ^= keys[lane] * _ODD[lane]
        mixed ^= mixed >> np.uint64(32)
        mixed *= _ODD[0]
        return (mixed >> np.uint64(64 - self._bits)).astype(np.int64)

    def _others(self, slots: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether another word, or none, lies at each place."""
        other = self._keys[0][slots] != keys[0]
        for lane in range(1, LANES):
            other |= self._keys[lane][slots] != keys[lane]
        return other
