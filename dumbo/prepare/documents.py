"""One split's rows -> its documents, written to a store: format, mask, cut what is too long, count.

prepare.py calls it once for each split that no store holds yet. Memory stays flat: rows come in batches, tokens go
to disk. Many rows are formatted by several processes (processes.py), made into parts of the store there (parts.py), and
written in their order by this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dumbo.errors import UserError
from dumbo.interfaces import BadRow, Formatter, Row, RowBatches
from dumbo.prepare.parts import PartMaker
from dumbo.prepare.processes import mapped, usable
from dumbo.prepare.store import Part, StoreWriter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SKIPPED_NAMED = 20
"""So many skipped rows are named in the store, with what is wrong with each."""
ALONE = 2
"""So many batches are formatted before other processes are started: two thousand rows take half a second, and the table
of words (formatter/words.py) that they fill is there in each process."""


@dataclass
class DocumentWriter:
    """Writes the documents of a split as they are wanted.

    Args:
        max_seq_len: longest document, in tokens.
        too_long: what becomes of a longer one: truncate_right, truncate_left, drop, split.
        on_bad_row: skip, or the first one ends it.
    """

    formatter: Formatter
    tokenizer: PreTrainedTokenizerBase
    max_seq_len: int
    too_long: str
    on_bad_row: str

    def __post_init__(self) -> None:
        self._cutting = PartMaker(self.tokenizer, self.max_seq_len, self.too_long)

    def write(self, batches: RowBatches, folder: Path, progress: Callable[[int], None]) -> None:
        """Formats the rows, writes their documents into `folder`; `progress` is told how many rows are done.

        Raises:
            UserError: a bad row, unless they are skipped.
        """
        writer = StoreWriter(folder, len(self.tokenizer))
        skipped: list[str] = []
        for part, bad in self._parts(iter(batches)):
            if bad and self.on_bad_row != "skip":
                raise UserError(str(bad[0]))
            writer.write(part)
            if bad:
                writer.counts["skipped"] += len(bad)
            skipped += [f"{row.source}: {row.problem}" for row in bad[: SKIPPED_NAMED - len(skipped)]]
            progress(writer.rows)
        progress(writer.rows)
        writer.close({"skipped": skipped, "max_seq_len": self.max_seq_len, "too_long": self.too_long})

    def _parts(self, batches: Iterator[list[Row | BadRow]]) -> Iterator[tuple[Part, list[BadRow]]]:
        """The documents of each batch and its bad rows. Few batches are not worth starting processes for."""
        yield from map(self._part, islice(batches, ALONE))
        yield from mapped(self._part, batches, usable())

    def _part(self, batch: list[Row | BadRow]) -> tuple[Part, list[BadRow]]:
        made = iter(self.formatter.format([row for row in batch if isinstance(row, Row)], self.tokenizer))
        items = [row if isinstance(row, BadRow) else next(made) for row in batch]
        part = self._cutting.part([item for item in items if not isinstance(item, BadRow)])
        return part, [item for item in items if isinstance(item, BadRow)]
