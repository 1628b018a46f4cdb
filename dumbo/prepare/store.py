"""Tokenised documents on disk, memory-mapped: written once, then read by index without loading.

tokens.bin   token ids, one document after another (uint16, or uint32 where the vocabulary needs it)
trained.bin  a byte a token: does it bear the loss
offsets.npy  (N + 1,) where each document begins
origin.npy   (N, 3) row number in the data, file number, line or row in the file
replies.npy  (N, 2) the last assistant turn in tokens; (-1, -1) where it is not whole, or its question was split off
labelled.npy (N,) how many tokens of each document bear the loss
hashes.npy   (rows,) a hash of each row's tokens, before any cut, for finding duplicates
meta.json    file names, counts, where the first rows of each count stand, what was skipped
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dumbo.interfaces import IGNORE, Source

FIRST = 3
"""So many rows are named of each count that is no good sign."""


def dtype_of(vocab_size: int) -> np.dtype[Any]:
    """The type of a token in tokens.bin."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class Part:
    """Some documents in memory, on their way into a store; other processes make them (`processes.py`)."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.tokens, self.trained = bytearray(), bytearray()
        self.lengths, self.origin = array("q"), array("q")
        self.replies, self.labelled = array("i"), array("q")
        self.files: dict[tuple[str, str], int] = {}
        self.hashes = array("Q")
        self.counts: Counter[str] = Counter()
        self.rows_by_file: Counter[str] = Counter()
        self.first_rows: dict[str, list[tuple[str, int, str]]] = {}

    def note(self, names: Iterable[str], source: Source) -> None:
        """Remembers a row that was counted under `names`, if it is one of the first."""
        for name in names:
            rows = self.first_rows.setdefault(name, [])
            if len(rows) < FIRST:
                rows.append((source.file, source.row, source.unit))

    def add(
        self,
        ids: NDArray[np.int32],
        trained: NDArray[np.bool_],
        source: Source,
        row: int,
        reply: tuple[int, int] | None,
    ) -> None:
        """One document: ids (T,), trained (T,); `row` counts from the part's first."""
        self.tokens += ids.astype(self.dtype).tobytes()
        self.trained += trained.tobytes()
        file = self.files.setdefault((source.file, source.unit), len(self.files))
        self.lengths.append(len(ids))
        self.origin.extend((row, file, source.row))
        self.replies.extend(reply or (-1, -1))
        self.labelled.append(int(np.count_nonzero(trained)))


class StoreWriter:
    """Appends documents to a folder; memory stays flat but for 52 bytes a document and 8 a row."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.folder = folder
        self.dtype = dtype_of(vocab_size)
        self._tokens: BinaryIO = (folder / "tokens.bin").open("wb")
        self._trained: BinaryIO = (folder / "trained.bin").open("wb")
        self._lengths = array("q")
        self._origin = array("q")
        self._replies = array("i")
        self._labelled = array("q")
        self._files: dict[tuple[str, str], int] = {}
        self.hashes = array("Q")
        self.counts: Counter[str] = Counter()
        self.rows_by_file: Counter[str] = Counter()
        self.first_rows: dict[str, list[tuple[str, int, str]]] = {}

    @property
    def rows(self) -> int:
        """Rows written, those too that became no document."""
        return len(self.hashes)

    def add(
        self,
        ids: NDArray[np.int32],
        trained: NDArray[np.bool_],
        source: Source,
        row: int,
        reply: tuple[int, int] | None,
    ) -> None:
        """One document of row `row`: ids (T,), trained (T,)."""
        part = Part(self.dtype)
        part.add(ids, trained, source, row - self.rows, reply)
        self.write(part)

    def write(self, part: Part) -> None:
        """The documents of the rows that follow."""
        self._tokens.write(part.tokens)
        self._trained.write(part.trained)
        origin = np.asarray(part.origin, dtype=np.int64).reshape(-1, 3)
        numbers = [self._files.setdefault(name, len(self._files)) for name in part.files]
        origin[:, 0] += self.rows
        origin[:, 1] = np.asarray(numbers, dtype=np.int64)[origin[:, 1]]
        self._lengths.extend(part.lengths)
        self._origin.frombytes(origin.tobytes())
        self._replies.extend(part.replies)
        self._labelled.extend(part.labelled)
        self.hashes.extend(part.hashes)
        longest = max(self.counts["longest"], part.counts["longest"])
        self.counts.update(part.counts)
        self.counts["longest"] = longest
        self.rows_by_file.update(part.rows_by_file)
        for name, rows in part.first_rows.items():
            named = self.first_rows.setdefault(name, [])
            named += rows[: FIRST - len(named)]

    def close(self, extra: dict[str, Any]) -> None:
        """Writes the index and the notes."""
        self._tokens.close()
        self._trained.close()
        offsets = np.zeros(len(self._lengths) + 1, np.int64)
        np.cumsum(np.asarray(self._lengths, dtype=np.int64), out=offsets[1:])
        np.save(self.folder / "offsets.npy", offsets)
        np.save(self.folder / "origin.npy", np.asarray(self._origin, dtype=np.int64).reshape(-1, 3))
        np.save(self.folder / "replies.npy", np.asarray(self._replies, dtype=np.int32).reshape(-1, 2))
        np.save(self.folder / "labelled.npy", np.asarray(self._labelled, dtype=np.int64))
        np.save(self.folder / "hashes.npy", np.asarray(self.hashes, dtype=np.uint64))
        meta = {
            "dtype": self.dtype.name,
            "files": [list(name) for name in self._files],
            "counts": dict(self.counts),
            "rows_by_file": dict(self.rows_by_file),
            "first_rows": self.first_rows,
            **extra,
        }
        (self.folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False))


@dataclass(frozen=True)
class Store:
    """A folder written by StoreWriter, read by document number."""

    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.folder / "meta.json").read_text())

    @cached_property
    def _tokens(self) -> NDArray[Any]:
        return self._mapped("tokens.bin", np.dtype(self.meta["dtype"]))

    @cached_property
    def _trained(self) -> NDArray[np.uint8]:
        return self._mapped("trained.bin", np.dtype(np.uint8))

    def _mapped(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        path = self.folder / name
        # as a plain array: a memmap asks at every slice what it is a slice of, which took a third of a batch's making
        return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray) if path.stat().st_size else np.zeros(0, dtype)

    def _index(self, name: str) -> NDArray[Any]:
        return np.load(self.folder / name, mmap_mode="r", allow_pickle=False).view(np.ndarray)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        return self._index("offsets.npy")

    @cached_property
    def origin(self) -> NDArray[np.int64]:
        return self._index("origin.npy")

    @cached_property
    def replies(self) -> NDArray[np.int32]:
        return self._index("replies.npy")

    @cached_property
    def labelled(self) -> NDArray[np.int64]:
        """(N,) trained tokens of each document."""
        return self._index("labelled.npy")

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        return self._index("hashes.npy")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens of each document."""
        return np.diff(self.offsets)

    def ids(self, document: int) -> NDArray[np.int64]:
        """(T,) token ids."""
        return self._tokens[self.offsets[document] : self.offsets[document + 1]].astype(np.int64)

    def trained(self, document: int) -> NDArray[np.bool_]:
        """(T,) which tokens bear the loss."""
        return self._trained[self.offsets[document] : self.offsets[document + 1]].astype(bool)

    def labels(self, document: int) -> NDArray[np.int64]:
        """(T,) unshifted labels, -100 where no loss."""
        return np.where(self.trained(document), self.ids(document), IGNORE)

    def source(self, document: int) -> Source:
        _, file, row = (int(number) for number in self.origin[document])
        name, unit = self.meta["files"][file]
        return Source(name, row, unit)

    def reply(self, document: int) -> tuple[int, int] | None:
        """[start, end) of the last assistant turn in tokens; None where it is not whole, or its question was split off."""
        start, end = (int(number) for number in self.replies[document])
        return (start, end) if start >= 0 else None

    def trained_tokens(self, documents: NDArray[np.int64]) -> int:
        """Trained tokens of some documents."""
        return int(self.labelled[documents].sum())


@dataclass(frozen=True)
class Split:
    """Some documents of a store: the training or the held-out ones.

    Attributes:
        documents: (n,) document numbers, in the data's order.
    """

    store: Store
    documents: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.store.lengths[self.documents]

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def trained_tokens(self) -> int:
        return self.store.trained_tokens(self.documents)

    @property
    def rows(self) -> int:
        """Rows of data these documents come from (a row split for its length counts once)."""
        return len(np.unique(self.store.origin[self.documents, 0])) if len(self.documents) else 0


@dataclass(frozen=True)
class PreparedSplits:
    """What a trainer gets.

    Attributes:
        train, eval: documents; `eval` is None when nothing is held out.
        name: of the data, for the start panel.
        fingerprint: of data, tokenizer, template and formatter together.
        max_seq_len: no document is longer, in tokens.
        audit: the counts of both, see `audit.py`.
        answer_pattern: see `Splits`.
        origin: where the training documents are stored, and the fingerprint of the rows they were made of.
    """

    train: Split
    eval: Split | None
    name: str
    fingerprint: str
    max_seq_len: int
    audit: dict[str, Any]
    answer_pattern: str | None = None
    origin: dict[str, Any] = field(default_factory=dict)


def documents_of(numbers: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    return np.asarray(numbers, dtype=np.int64)
