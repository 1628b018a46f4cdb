"""What the audit (audit.py) tells of rows, counted when they become documents.

Rows like all others (whole, ended by a trained end token, with nothing that the formatter noticed) are counted together;
only the rest is looked at one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dumbo.interfaces import Example
from dumbo.prepare.pieces import Pieces, Tokens
from dumbo.prepare.store import Part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROW = ("rows", "rows_with_control_tokens", "source_tokens", "longest", "rows_with_reply")
"""Counted of every row, in this order."""
_DOCUMENT = ("tokens", "trained_tokens", "end_token_trained", "documents")
"""Counted of every row that became a document."""


@dataclass
class Counting:
    """Counts, as `PartMaker` is set."""

    tokenizer: PreTrainedTokenizerBase
    max_seq_len: int
    too_long: str
    _blank: dict[int, bool] = field(default_factory=dict)

    def count(self, part: Part, tokens: Tokens, pieces: Pieces, examples: Sequence[Example]) -> None:
        """Rows in order, since the first ones of each count are remembered; those like all others together."""
        lengths = np.diff(tokens.edges)
        number = np.bincount(pieces.row, minlength=len(lengths))
        kept = np.bincount(pieces.row, pieces.end - pieces.start, len(lengths)).astype(np.int64)
        labelled = np.bincount(pieces.row, pieces.labelled, len(lengths)).astype(np.int64)
        ends, doubled = self._ends(tokens, pieces), self._doubled(tokens)
        like_all = (number == 1) & ends & ~doubled & (lengths <= self.max_seq_len)
        like_all &= np.fromiter((not example.counts for example in examples), bool, len(examples))
        counts = part.counts
        seen = False
        for file in (example.source.file for example in examples):
            part.rows_by_file[file] += 1
        for row, alike in enumerate(like_all.tolist()):
            if alike:
                if not seen:
                    counts.update(dict.fromkeys(_ROW + _DOCUMENT, 0))
                seen = True
                continue
            example, too_long = examples[row], pieces.too_long.get(row, {})
            noticed = _count_row(counts, example, int(lengths[row]), bool(doubled[row]), too_long)
            if number[row]:
                counts["tokens"] += int(kept[row])
                counts["trained_tokens"] += int(labelled[row])
            counts["end_token_trained"] += int(ends[row])
            counts["documents"] += int(number[row])
            noticed += self._worries(counts, example, int(number[row]), bool(ends[row]), too_long)
            if noticed or too_long:
                part.note([*noticed, *too_long], example.source)
        if seen:
            rows = int(np.count_nonzero(like_all))
            counts["rows"] += rows
            counts["source_tokens"] += int(lengths[like_all].sum())
            counts["longest"] = max(counts["longest"], int(lengths[like_all].max()))
            counts["rows_with_reply"] += sum(
                examples[row].reply is not None for row in np.flatnonzero(like_all).tolist()
            )
            counts["tokens"] += int(kept[like_all].sum())
            counts["trained_tokens"] += int(labelled[like_all].sum())
            counts["end_token_trained"] += rows
            counts["documents"] += rows

    def _worries(
        self, counts: Counter[str], example: Example, kept: int, ends: bool, too_long: dict[str, int]
    ) -> list[str]:
        noticed = []
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
        return noticed

    def _doubled(self, tokens: Tokens) -> NDArray[np.bool_]:
        """(rows,) which begin with two bos."""
        if self._bos is None:
            return np.zeros(len(tokens.edges) - 1, bool)
        is_bos = np.append(tokens.ids == self._bos, [False, False])
        first = tokens.edges[:-1]
        return is_bos[first] & is_bos[first + 1] & (np.diff(tokens.edges) > 1)

    def _ends(self, tokens: Tokens, pieces: Pieces) -> NDArray[np.bool_]:
        """(rows,) whether the last piece of a row ends with a trained end token: see `_ends_with_end_token`."""
        found = np.zeros(len(tokens.edges) - 1, bool)
        last = np.flatnonzero(np.append(pieces.row[1:] != pieces.row[:-1], np.ones(min(1, len(pieces.row)), bool)))
        start, end, replies = pieces.start[last], pieces.end[last], pieces.replies[last]
        is_end = np.isin(tokens.ids, list(self._end_ids))
        said = start + replies[:, 1] - 1
        trained_to_its_end = (replies[:, 0] >= 0) & pieces.bearing[said]
        bears = np.flatnonzero(pieces.bearing)
        final = bears[np.searchsorted(bears, end) - 1]
        surely = np.where(trained_to_its_end, is_end[said], is_end[final])
        for place in np.flatnonzero(~surely).tolist():
            a, b = int(start[place]), int(end[place])
            reply = (int(replies[place, 0]), int(replies[place, 1])) if replies[place, 0] >= 0 else None
            surely[place] = self._ends_with_end_token(tokens.ids[a:b], pieces.bearing[a:b], reply)
        found[pieces.row[last]] = surely
        return found

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


def _count_row(
    counts: Counter[str], example: Example, length: int, doubled: bool, too_long: dict[str, int]
) -> list[str]:
    counts.update(example.counts)
    control = "control_tokens_in_text" in example.counts
    counts["rows"] += 1
    counts["rows_with_control_tokens"] += int(control)
    counts["source_tokens"] += length
    counts["longest"] = max(counts["longest"], length)
    counts["rows_with_reply"] += int(example.reply is not None)
    noticed = [name for name, number in example.counts.items() if number]
    noticed += ["rows_with_control_tokens"] * control
    if doubled:
        counts["doubled_bos"] += 1
        noticed.append("doubled_bos")
    for name, number in too_long.items():
        counts[name] += number
    return noticed
