"""Rows -> documents in a store: render, tokenise, mask, cut, write. Once a data set, tokenizer, template and source.

    dataset.load() -> formatter.format(batch) -> too long? -> store   (key: everything that could change a token)

Memory stays flat in the size of the data: batches stream through, tokens go to disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dumbo.cache import cache_folder, key_of, made_whole
from dumbo.errors import UserError
from dumbo.interfaces import IGNORE, BadRow, Example, Formatter, Row, RowBatches, Splits
from dumbo.prepare.audit import audit_of
from dumbo.prepare.sources import code_without_file, source_files
from dumbo.prepare.store import PreparedSplits, Split, Store, StoreWriter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORM = 2
"""Changes when the store's files do."""

SKIPPED_NAMED = 20
"""So many skipped rows are named in the store, with what is wrong with each."""
TOO_LONG = ("truncate_right", "truncate_left", "drop", "split")
Progress = Callable[[str, int], None]
"""Called with the split's name and how many of its rows are done."""


def prepare(
    splits: Splits,
    formatter: Formatter,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_len: int,
    too_long: str,
    progress: Progress = lambda name, rows: None,
) -> PreparedSplits:
    """Prepares both splits, from the store when the same was prepared before.

    Args:
        max_seq_len: longest document, in tokens.
        too_long: what becomes of a longer one: truncate_right, truncate_left, drop, split.
        progress: told how far it is.

    Raises:
        UserError: a bad row under `on_bad_row=stop`, or no usable row at all.
    """
    key = {
        "form": FORM,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "formatter": formatter_fingerprint(formatter),
        "max_seq_len": max_seq_len,
        "too_long": too_long,
        "on_bad_row": splits.on_bad_row,
        "data": splits.fingerprint,
        "rows": [_rows_fingerprint(batches) for batches in (splits.train, splits.eval) if batches is not None],
    }

    def stored(name: str, batches: RowBatches) -> Store:
        files = [str(file) for file in getattr(batches, "files", ())]  # the store names them as sources
        folder = cache_folder("prepared") / key_of({**key, "split": name, "files": files})
        if not folder.is_dir():
            with made_whole(folder) as staging:
                _Preparation(formatter, tokenizer, max_seq_len, too_long, splits.on_bad_row).write(
                    batches, staging, lambda rows: progress(name, rows)
                )
        return Store(folder)

    train = stored("train", splits.train)
    if not len(train):
        raise UserError(_nothing_left(train, splits.name, "train on"))
    if splits.eval is not None:
        held_store = stored("eval", splits.eval)
        if not len(held_store):
            raise UserError(_nothing_left(held_store, splits.name, "hold out"))
        held_out: Split | None = Split(held_store, _limited(held_store, splits.eval_limit))
        kept = Split(train, np.arange(len(train)))
    else:
        kept, held_out = _by_fraction(train, splits)
    return PreparedSplits(
        train=kept,
        eval=held_out,
        name=splits.name,
        fingerprint=key_of(key),
        max_seq_len=max_seq_len,
        audit=audit_of(kept, held_out),
        answer_pattern=splits.answer_pattern,
    )


def _limited(store: Store, limit: int | None) -> NDArray[np.int64]:
    """Documents of the first `limit` rows."""
    rows = store.origin[:, 0]
    return np.arange(len(store)) if limit is None else np.flatnonzero(rows < np.unique(rows)[:limit][-1] + 1)


def _by_fraction(store: Store, splits: Splits) -> tuple[Split, Split | None]:
    """Holds out whole rows, chosen by `split_seed`; a row cut into several documents stays together.

    Of two rows or more at least one is held out and at least one is trained on.
    """
    rows = np.unique(store.origin[:, 0])
    amount = round(len(rows) * splits.eval_fraction)
    if splits.eval_fraction > 0:
        amount = min(max(1, amount), len(rows) - 1)
    if amount == 0:
        return Split(store, np.arange(len(store))), None
    chosen = np.random.default_rng(splits.split_seed).permutation(rows)[:amount]
    held = np.isin(store.origin[:, 0], chosen)
    if splits.eval_limit is not None:
        kept_rows = np.sort(chosen[: splits.eval_limit])
        return Split(store, np.flatnonzero(~held)), Split(store, np.flatnonzero(np.isin(store.origin[:, 0], kept_rows)))
    return Split(store, np.flatnonzero(~held)), Split(store, np.flatnonzero(held))


def _nothing_left(store: Store, name: str, use: str) -> str:
    meta = store.meta
    lines = [f"{name}: no row is left to {use}."]
    if skipped := meta["counts"].get("skipped"):
        lines.append(f"  {skipped:,} bad rows were skipped, the first: {meta['skipped'][0]}")
    for count, why in (("dropped", "longer than trainer.max_seq_len"), ("zero_label_rows", "without a trained token")):
        if number := meta["counts"].get(count):
            lines.append(f"  {number:,} rows were {why}.")
    return "\n".join(lines)


@dataclass
class _Preparation:
    formatter: Formatter
    tokenizer: PreTrainedTokenizerBase
    max_seq_len: int
    too_long: str
    on_bad_row: str
    _blank: dict[int, bool] = field(default_factory=dict)

    def write(self, batches: RowBatches, folder: Path, progress: Callable[[int], None]) -> None:
        writer = StoreWriter(folder, len(self.tokenizer))
        skipped: list[str] = []
        number = 0
        for item in self._formatted(batches):
            if isinstance(item, BadRow):
                if self.on_bad_row != "skip":
                    raise UserError(str(item))
                writer.counts["skipped"] += 1
                if len(skipped) < SKIPPED_NAMED:
                    skipped.append(f"{item.source}: {item.problem}")
                continue
            self._add(writer, item, number)
            number += 1
            if number % 512 == 0:
                progress(number)
        progress(number)
        writer.close({"skipped": skipped, "max_seq_len": self.max_seq_len, "too_long": self.too_long})

    def _formatted(self, batches: RowBatches) -> Iterator[Example | BadRow]:
        for batch in batches:
            rows = [row for row in batch if isinstance(row, Row)]
            examples = iter(self.formatter.format(rows, self.tokenizer))
            for row in batch:
                yield row if isinstance(row, BadRow) else next(examples)

    def _add(self, writer: StoreWriter, example: Example, row: int) -> None:
        ids = np.asarray(example.input_ids, dtype=np.int32)
        labels = np.asarray(example.labels, dtype=np.int32)
        trained = labels != IGNORE
        assert not len(trained) or not trained[0], "labels must be -100 at position 0"
        assert np.array_equal(labels[trained], ids[trained]), "labels must be unshifted ids"
        counts = writer.counts
        counts.update(example.counts)
        counts["rows"] += 1
        counts["rows_with_control_tokens"] += int("control_tokens_in_text" in example.counts)
        counts["source_tokens"] += len(ids)
        counts["longest"] = max(counts["longest"], len(ids))
        counts["rows_with_reply"] += int(example.reply is not None)
        counts["doubled_bos"] += int(_doubled(ids, self.tokenizer.bos_token_id))
        writer.rows_by_file[example.source.file] += 1
        writer.hashes.append(int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little"))
        kept = 0
        ends = False
        for start, end in self._cuts(len(ids), counts):
            part = trained[start:end].copy()
            if len(part):
                part[0] = False
            if not part.any():
                continue
            kept += 1
            reply = _moved(example.reply, start, end)
            ends = self._ends_with_end_token(ids[start:end], part, reply)
            asked_whole = start == 0 or self.too_long != "split"  # a later piece has lost the start of its question
            writer.add(ids[start:end], part, example.source, row, reply if asked_whole else None)
            counts["tokens"] += end - start
            counts["trained_tokens"] += int(part.sum())
        counts["end_token_trained"] += int(ends)
        counts["documents"] += kept
        if kept == 0 and not (self.too_long == "drop" and len(ids) > self.max_seq_len):
            counts["zero_label_rows"] += 1

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
    def _end_ids(self) -> set[int]:
        specials = {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return specials | set(self.tokenizer.all_special_ids)

    def _cuts(self, length: int, counts: Any) -> list[tuple[int, int]]:
        """The pieces of a row that are kept, [start, end) in tokens."""
        longest = self.max_seq_len
        if length <= longest:
            return [(0, length)]
        counts["too_long"] += 1
        if self.too_long == "drop":
            counts["dropped"] += 1
            return []
        if self.too_long == "split":
            counts["split"] += 1
            return [(start, min(start + longest, length)) for start in range(0, length, longest)]
        counts["truncated"] += 1
        return [(0, longest)] if self.too_long == "truncate_right" else [(length - longest, length)]


def _doubled(ids: NDArray[np.int32], bos: int | None) -> bool:
    return bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos


def _moved(reply: tuple[int, int] | None, start: int, end: int) -> tuple[int, int] | None:
    """The reply's place in a piece; None unless it lies in it whole, with something before it."""
    if reply is None or reply[0] <= start or reply[1] > end:
        return None
    return reply[0] - start, reply[1] - start


def _rows_fingerprint(batches: RowBatches) -> list[str]:
    """Changes with rows held in a list, or the source of a user's class that yields them (`Splits.fingerprint` aside)."""
    if isinstance(batches, list | tuple):
        return [hashlib.sha256(repr(batches).encode()).hexdigest()]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in source_files(type(batches))]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Changes when any text could be tokenised or rendered differently, the libraries that do it among the causes."""
    parts = [
        *(f"{name} {version(name)}" for name in ("transformers", "tokenizers", "jinja2")),
        tokenizer.backend_tokenizer.to_str(),
        json.dumps(tokenizer.chat_template, sort_keys=True),
        json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def formatter_fingerprint(formatter: Formatter) -> str:
    """Changes with the formatter's options, its source, and the source of whatever turns rows into tokens here."""
    here = Path(__file__).resolve().parent
    package = here.parent
    sources = [
        *sorted((package / "formatter").glob("*.py")),
        *sorted((package / "dataset").glob("*.py")),
        here / "prepare.py",
        here / "store.py",
    ]
    sources += [file for file in source_files(type(formatter)) if file not in sources]
    options: Any = (
        asdict(formatter) if is_dataclass(formatter) and not isinstance(formatter, type) else repr(vars(formatter))
    )
    text = getattr(formatter, "text", None)
    parts = {
        "class": f"{type(formatter).__module__}.{type(formatter).__qualname__}",
        "options": options,
        "template": text() if callable(text) else None,
        "code": code_without_file(type(formatter)),
        "sources": [hashlib.sha256(source.read_bytes()).hexdigest() for source in sources],
    }
    return key_of(parts)
