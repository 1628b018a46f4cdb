"""Examples -> a part of a store: what is too long is cut, and everything is counted, a batch at a time.

documents.py calls it, in each of its processes. Pieces are pieces.py's, counts counting.py's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dumbo.errors import UserError
from dumbo.interfaces import Example
from dumbo.prepare.counting import Counting
from dumbo.prepare.pieces import Pieces, Tokens, pieces_of
from dumbo.prepare.store import Part, dtype_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class PartMaker:
    """Makes parts.

    Args:
        max_seq_len: longest document, in tokens.
        too_long: what becomes of a longer one: truncate_right, truncate_left, drop, split.
    """

    tokenizer: PreTrainedTokenizerBase
    max_seq_len: int
    too_long: str

    def __post_init__(self) -> None:
        self._counting = Counting(self.tokenizer, self.max_seq_len, self.too_long)

    def part(self, examples: Sequence[Example]) -> Part:
        """The documents of some rows."""
        part = Part(dtype_of(len(self.tokenizer)))
        if examples:
            tokens = Tokens.of(examples)
            pieces = pieces_of(tokens, examples, self.max_seq_len, self.too_long)
            part.hashes.frombytes(_hashes(tokens).tobytes())
            self._counting.count(part, tokens, pieces, examples)
            self._add(part, tokens, pieces, examples)
        return part

    def _add(self, part: Part, tokens: Tokens, pieces: Pieces, examples: Sequence[Example]) -> None:
        spans = list(zip(pieces.start.tolist(), pieces.end.tolist(), strict=True))
        if sum(end - start for start, end in spans) == len(tokens.ids):
            ids, trained = tokens.ids, pieces.bearing
        elif spans:
            ids = np.concatenate([tokens.ids[start:end] for start, end in spans])
            trained = np.concatenate([pieces.bearing[start:end] for start, end in spans])
        else:
            return
        if (largest := int(ids.max(initial=0))) > np.iinfo(
            part.dtype
        ).max:  # numbers with holes: it would become another token
            raise UserError(
                f"The tokenizer gives the number {largest:,}, and says that it has {len(self.tokenizer):,} tokens.\n"
                "  Number its added tokens without holes, or write model.tokenizer.path=FOLDER for another one"
            )
        part.tokens += ids.astype(part.dtype).tobytes()
        part.trained += trained.tobytes()
        part.lengths.frombytes((pieces.end - pieces.start).tobytes())
        sources = [examples[row].source for row in pieces.row.tolist()]
        files = [part.files.setdefault((source.file, source.unit), len(part.files)) for source in sources]
        origin = np.stack([pieces.row, np.asarray(files), np.asarray([source.row for source in sources])], axis=1)
        part.origin.frombytes(origin.astype(np.int64).tobytes())
        replies = pieces.replies
        if self.too_long == "split":  # a later piece has lost the start of its question
            replies = np.where((pieces.start == tokens.edges[pieces.row])[:, None], replies, -1)
        part.replies.frombytes(replies.astype(np.int32).tobytes())
        part.labelled.frombytes(pieces.labelled.tobytes())


def _hashes(tokens: Tokens) -> NDArray[np.uint64]:
    """(rows,) a hash of each row's tokens."""
    whole, edges = memoryview(tokens.ids.tobytes()), (4 * tokens.edges).tolist()
    found = [hashlib.blake2b(whole[a:b], digest_size=8).digest() for a, b in pairwise(edges)]
    return np.frombuffer(b"".join(found), "<u8").astype(np.uint64)
