"""The batches of a run that take the most memory, of the data itself: what plan rehearses and the probe measures.

With packing the fullest packs, of them those with most trained tokens; without it the longest documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dumbo.prepare.packing import pack
from dumbo.trainer.collate import Examples

if TYPE_CHECKING:
    from dumbo.prepare.store import PreparedSplits, Split

NEAR = 8
"""Of packs that are as full, so many times more than are wanted are looked at for their trained tokens."""


def examples_of(trainer: Any, data: PreparedSplits) -> Examples:
    """What the sampler's numbers stand for in this run."""
    packs = pack(data.train.lengths, data.train.documents, data.max_seq_len, trainer.seed) if trainer.packing else None
    return Examples(packs, data.train.documents)


def longest(examples: Examples, split: Split, amount: int) -> list[NDArray[np.int64]]:
    """The documents of so many examples, longest first; fewer examples come again and again."""
    return [examples[int(number)] for number in longest_numbers(examples, split, amount)]


def longest_numbers(examples: Examples, split: Split, amount: int) -> NDArray[np.int64]:
    """(amount,) the numbers of those examples."""
    if examples.packs is not None:
        tokens = examples.packs.tokens
        near = np.flatnonzero(tokens >= np.sort(tokens)[-min(len(tokens), NEAR * amount)])[: NEAR * amount]
        trained = np.array([split.store.trained_tokens(examples[int(number)]) for number in near])
        order = near[np.lexsort((trained, tokens[near]))[::-1]]
    else:
        order = np.argsort(split.store.lengths[examples.documents], kind="stable")[::-1]
    return np.resize(order, amount)
