"""A store of which the quick proofs see at most `MOST` tokens a document, or fewer.

They hold logits of whole documents, several times over, and run some layers without gradient checkpointing: at 128k tokens
and a vocabulary of 128k the logits alone are 33 GB in bf16. What they prove does not depend on a document's length.
An excerpt begins so far before the first trained token that half of it is context, and has the document's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dumbo.prepare.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 8192
"""Documents as long as this are common, and take 2 GB of logits in bf16 at a vocabulary of 128k."""


def excerpts_of(store: Store, most: int | None = None, fewer: Mapping[int, int] | None = None) -> Store:
    """The store itself where no document is longer than that.

    Args:
        most: tokens of a document; None: `MOST`.
        fewer: number of a document -> tokens of it.
    """
    most = min(MOST if most is None else most, getattr(store, "most", 1 << 62))
    longer = len(store) > 0 and int(store.lengths.max()) > most
    return Excerpts(store.folder, most, fewer or {}) if longer or fewer else store


@dataclass(frozen=True)
class Excerpts(Store):
    """The documents of another store, none longer than `most` tokens, some of them shorter (number -> tokens)."""

    most: int
    fewer: Mapping[int, int] = field(default_factory=dict, hash=False)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        found = np.minimum(np.diff(self.offsets), self.most)
        for document, most in self.fewer.items():
            found[document] = min(found[document], most)
        return found

    @cached_property
    def labelled(self) -> NDArray[np.int64]:
        found = np.array(super().labelled)
        for document in np.flatnonzero(np.diff(self.offsets) > self.lengths).tolist():
            found[document] = np.count_nonzero(self.trained(document))
        return found

    def ids(self, document: int) -> NDArray[np.int64]:
        start = self._start(document, super().trained(document))
        return super().ids(document)[start : start + int(self.lengths[document])]

    def trained(self, document: int) -> NDArray[np.bool_]:
        """(T,); the first token of an excerpt never is: what it would be predicted from is left out."""
        whole = super().trained(document)
        start = self._start(document, whole)
        found = whole[start : start + int(self.lengths[document])]
        if start:
            found[0] = False
        return found

    def trained_tokens(self, documents: NDArray[np.int64]) -> int:
        return sum(int(np.count_nonzero(self.trained(document))) for document in documents.tolist())

    def _start(self, document: int, trained: NDArray[np.bool_]) -> int:
        most = int(self.lengths[document])
        past = len(trained) - most
        return 0 if past <= 0 else min(max(0, int(np.argmax(trained)) - most // 2), past)
