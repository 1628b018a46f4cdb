"""One split's rows -> its documents, written to a store: format, mask, cut what is too long, count.

prepare.py calls it once for each split that no store holds yet. Memory stays flat: rows come in batches, tokens go
to disk. Many rows are formatted by several processes (processes.py), and written in their order by this one. The counts
are what the audit (audit.py) tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dumbo.errors import UserError
from dumbo.interfaces import IGNORE, BadRow, Example, Formatter, Row, RowBatches
from dumbo.prepare.processes import mapped, usable
from dumbo.prepare.store import Part, StoreWriter, dtype_of

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
    _blank: dict[int, bool] = field(default_factory=dict)

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
        part = Part(dtype_of(len(self.tokenizer)))
        bad: list[BadRow] = []
        examples = iter(self.formatter.format([row for row in batch if isinstance(row, Row)], self.tokenizer))
        for row in batch:
            item = row if isinstance(row, BadRow) else next(examples)
            if isinstance(item, BadRow):
                bad.append(item)
            else:
                self._add(part, item)
        return part, bad

    def _add(self, part: Part, example: Example) -> None:
        ids = np.asarray(example.input_ids, dtype=np.int32)
        labels = np.asarray(example.labels, dtype=np.int32)
        trained = labels != IGNORE
        assert not len(trained) or not trained[0], "labels must be -100 at position 0"
        assert np.array_equal(labels[trained], ids[trained]), "labels must be unshifted ids"
        counts, row = part.counts, len(part.hashes)
        counts.update(example.counts)
        counts["rows"] += 1
        counts["rows_with_control_tokens"] += int("control_tokens_in_text" in example.counts)
        counts["source_tokens"] += len(ids)
        counts["longest"] = max(counts["longest"], len(ids))
        counts["rows_with_reply"] += int(example.reply is not None)
        noticed = [name for name, number in example.counts.items() if number]
        noticed += ["rows_with_control_tokens"] * ("control_tokens_in_text" in example.counts)
        if _doubled(ids, self._bos):
            counts["doubled_bos"] += 1
            noticed.append("doubled_bos")
        part.rows_by_file[example.source.file] += 1
        part.hashes.append(int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little"))
        kept = 0
        ends = False
        cuts, too_long = self._cuts(len(ids))
        for name, number in too_long.items():
            counts[name] += number
        for start, end in cuts:
            bearing = trained[start:end].copy()
            if len(bearing):
                bearing[0] = False
            if not bearing.any():
                continue
            kept += 1
            reply = _moved(example.reply, start, end)
            ends = self._ends_with_end_token(ids[start:end], bearing, reply)
            asked_whole = start == 0 or self.too_long != "split"  # a later piece has lost the start of its question
            part.add(ids[start:end], bearing, example.source, row, reply if asked_whole else None)
            counts["tokens"] += end - start
            counts["trained_tokens"] += int(np.count_nonzero(bearing))
        counts["end_token_trained"] += int(ends)
        counts["documents"] += kept
        dropped = "dropped" in too_long
        if kept == 0 and not dropped:
            counts["zero_label_rows"] += 1
            noticed.append("zero_label_rows")
        if not ends and not dropped:
            noticed.append("end_token_missing")
        whole_end = not too_long or self.too_long == "truncate_left"
        if kept and not ends and whole_end and example.reply is not None:
            counts["end_token_untrained"] += 1
            noticed.append("end_token_untrained")
        if noticed or too_long:
            part.note([*noticed, *too_long], example.source)

    def _ends_with_end_token(
        self, ids: NDArray[np.int32], trained: NDArray[np.bool_], reply: tuple[int, int] | None
    ) -> bool:
        """Whether the last turn that is trained ends with a trained control token; white space may follow it.

        The last assistant turn counts where it is trained to its end: `loss_on=all` trains what stands after it too.
        Otherwise whatever is trained last counts.
        """
        last = self._before_blanks(ids, int(np.flatnonzero(trained)[-1]))
        if reply is None or not trained[reply[1] - 1]:
            return bool(trained[last]) and int(ids[last]) in self._end_ids
        said = self._before_blanks(ids, reply[1] - 1)
        apart = all(self._is_blank(int(token)) for token in ids[reply[1] : last])  # a formatter may count it apart
        return int(ids[said]) in self._end_ids or (last >= reply[1] and apart and int(ids[last]) in self._end_ids)

    def _before_blanks(self, ids: NDArray[np.int32], place: int) -> int:
        """`place`, or the last token before it that is more than white space."""
        while place > 0 and self._is_blank(int(ids[place])):
            place -= 1
        return place

    def _is_blank(self, token: int) -> bool:
        """Whether a token is white space."""
        if token not in self._blank:
            self._blank[token] = token not in self._end_ids and not str(self.tokenizer.decode([token])).strip()
        return self._blank[token]

    @cached_property
    def _bos(self) -> int | None:
        return self.tokenizer.bos_token_id

    @cached_property
    def _end_ids(self) -> set[int]:
        specials = {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return specials | set(self.tokenizer.all_special_ids)

    def _cuts(self, length: int) -> tuple[list[tuple[int, int]], dict[str, int]]:
        """The pieces of a row that are kept, [start, end) in tokens, and what the audit counts of one that is too long."""
        longest = self.max_seq_len
        if length <= longest:
            return [(0, length)], {}
        if self.too_long == "drop":
            return [], {"too_long": 1, "dropped": 1}
        if self.too_long == "split":
            pieces = [(start, min(start + longest, length)) for start in range(0, length, longest)]
            return pieces, {"too_long": 1, "split": 1}
        kept = (0, longest) if self.too_long == "truncate_right" else (length - longest, length)
        return [kept], {"too_long": 1, "truncated": 1, "truncated_tokens": length - longest}


def _doubled(ids: NDArray[np.int32], bos: int | None) -> bool:
    return bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos


def _moved(reply: tuple[int, int] | None, start: int, end: int) -> tuple[int, int] | None:
    """The reply's place in a piece; None unless it lies in it whole, with something before it."""
    if reply is None or reply[0] <= start or reply[1] > end:
        return None
    return reply[0] - start, reply[1] - start
