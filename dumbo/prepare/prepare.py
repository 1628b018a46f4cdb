"""Rows -> documents in a store: render, tokenise, mask, cut, write. Once a data set, tokenizer, template and source.

    dataset.load() -> formatter.format(batch) -> too long? -> store   (key: everything that could change a token)

The writing is documents.py's, the key fingerprints.py's. Here a split is found or made, and rows are held out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dumbo.cache import cache_folder, content_hash, key_of, made_whole, one_at_a_time
from dumbo.errors import UserError
from dumbo.interfaces import Formatter, RowBatches, Splits
from dumbo.prepare.audit import audit_of
from dumbo.prepare.documents import DocumentWriter
from dumbo.prepare.fingerprints import formatter_fingerprint, rows_fingerprint, tokenizer_fingerprint
from dumbo.prepare.store import PreparedSplits, Split, Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORM = 2
"""Changes when the store's files do, and the tokens in them may."""
NOTES = 1
"""Changes when only what the store says of the tokens does: runs that were trained on them go on."""
MOST_FILES = 200
"""Data files that are named in run.json."""

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
    key = {**_key(splits, formatter, tokenizer), "max_seq_len": max_seq_len, "too_long": too_long}

    def stored(name: str, batches: RowBatches) -> Store:
        files = [str(file) for file in getattr(batches, "files", ())]  # the store names them as sources
        folder = cache_folder("prepared") / key_of({**key, "notes": NOTES, "split": name, "files": files})
        if not folder.is_dir():
            with one_at_a_time(folder):  # jobs of a sweep that begin together
                if not folder.is_dir():
                    with made_whole(folder) as staging:
                        DocumentWriter(formatter, tokenizer, max_seq_len, too_long, splits.on_bad_row).write(
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
        origin={"stored_in": str(train.folder), "rows_fingerprint": splits.fingerprint, "files": _files(splits)},
    )


def _key(splits: Splits, formatter: Formatter, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What could change a token."""
    return {
        "form": FORM,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "formatter": formatter_fingerprint(formatter),
        "on_bad_row": splits.on_bad_row,
        "data": splits.fingerprint,
        "rows": [rows_fingerprint(batches) for batches in (splits.train, splits.eval) if batches is not None],
    }


def _files(splits: Splits) -> dict[str, str]:
    """Each data file and the start of its sha256, for whoever repeats the run; of very many the first."""
    files = [file for batches in (splits.train, splits.eval) for file in getattr(batches, "files", ())]
    return {str(file): content_hash(file)[:16] for file in files[:MOST_FILES]}


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
