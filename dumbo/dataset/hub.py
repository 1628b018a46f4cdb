"""`dataset=hub` (and alpaca, gsm8k, which are one): a data set from the hub through `datasets`, or local files.

`datasets` downloads once and memory-maps Arrow files; rows are then read a batch at a time. When `path` names
files on this disk they are read as `dataset=files` reads them, so that a ready choice works without a hub.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dumbo import hub
from dumbo.cache import content_hash, key_of
from dumbo.dataset.columns import Columns, DataFormat, Unseen, recognise
from dumbo.dataset.files import SUFFIXES, Files, check_common, ending
from dumbo.dataset.reading import BATCH
from dumbo.errors import UserError
from dumbo.interfaces import BadRow, Row, Source, Splits

if TYPE_CHECKING:
    import datasets


COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Reads a data set of the hub.

    Args:
        path: hub id (tatsu-lab/alpaca), or local files: a file, a glob, a folder, or a list of them.
        config: which of the data set's configurations; null: its only or default one.
        split: the split to train on.
        eval_split: the split to hold out; null: a fraction of `split`.
        revision: branch, tag or commit; null: main.
        data_format, columns, eval_path, eval_fraction, split_seed, eval_limit, limit, on_bad_row, answer_pattern: as for `Files`.
    """

    path: str | list[str]
    config: str | None = None
    split: str = "train"
    eval_split: str | None = None
    revision: str | None = None
    data_format: DataFormat = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    eval_path: str | list[str] | None = None
    eval_fraction: float = 0.05
    split_seed: int = 0
    eval_limit: int | None = None
    limit: int | None = None
    on_bad_row: Literal["stop", "skip"] = "stop"
    answer_pattern: str | None = None

    def __post_init__(self) -> None:
        check_common(self.eval_fraction, self.eval_limit, self.limit, self.answer_pattern, self.columns)

    def problems(self) -> Iterable[str]:
        if self._is_local():
            yield from self._as_files().problems()
        elif isinstance(self.path, str) and self.path.count("/") > 1:
            yield f"dataset.path: there is no '{self.path}', and a hub id has one slash (tatsu-lab/alpaca)."

    def load(self) -> Splits:
        if self._is_local():
            return self._as_files().load()
        train = self._download(self.split)
        held_out = self._download(self.eval_split) if self.eval_split else None
        fingerprint: dict[str, object] = {
            "train": _contents(train),
            "eval": _contents(held_out) if held_out is not None else None,
            "reading": [self.data_format, self.columns, self.limit, self.split, self.eval_split],
            "eval_limit": self.eval_limit if held_out is not None else None,
        }
        files = None
        if self.eval_path is not None:
            files = Files(
                path=self.eval_path,
                data_format=self.data_format,
                columns=self.columns,
                limit=self.eval_limit,
                eval_fraction=0.0,
            ).load()
            fingerprint["eval"] = files.fingerprint
        held_rows = self._batches(held_out, self.eval_split or "", self.eval_limit) if held_out is not None else None
        return Splits(
            train=self._batches(train, self.split, self.limit),
            eval=files.train if files is not None else held_rows,
            fingerprint=key_of(fingerprint),
            name=str(self.path).split("/")[-1],
            eval_fraction=self.eval_fraction,
            split_seed=self.split_seed,
            eval_limit=self.eval_limit,
            on_bad_row=self.on_bad_row,
            answer_pattern=self.answer_pattern,
        )

    def _is_local(self) -> bool:
        if isinstance(self.path, list):
            return True
        path = Path(self.path).expanduser()
        names_files = self.path.startswith((".", "/", "~")) or ending(path) in SUFFIXES  # an id may hold a dot
        return path.exists() or glob.has_magic(self.path) or names_files

    def _as_files(self) -> Files:
        return Files(
            path=self.path,
            data_format=self.data_format,
            columns=self.columns,
            eval_path=self.eval_path,
            eval_fraction=self.eval_fraction,
            split_seed=self.split_seed,
            eval_limit=self.eval_limit,
            limit=self.limit,
            on_bad_row=self.on_bad_row,
            answer_pattern=self.answer_pattern,
        )

    def _download(self, split: str) -> datasets.Dataset:
        import datasets

        offline = not hub.in_reach()
        datasets.disable_progress_bars()
        datasets.config.HF_HUB_OFFLINE = offline
        try:
            data = datasets.load_dataset(str(self.path), self.config, split=split, revision=self.revision)
        except (ConnectionError, FileNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
            if offline:
                raise hub.HubUnreachable(
                    f"The data set {self.path} is not cached here and the hub is not in reach.\n"
                    "  Write dataset.path=FILE for rows on this disk (jsonl, json, csv, parquet)."
                ) from error
            raise UserError(
                f"There is no data set '{self.path}' on the hub, or no right to it ({_first_line(error)})."
            ) from error
        except ValueError as error:
            raise UserError(
                f"The data set {self.path}: {_first_line(error)}\n  See dataset.config, dataset.split, dataset.revision."
            ) from error
        if self.revision is not None and (offline or COMMIT.fullmatch(self.revision)):
            self._require_commit(data)
        return data

    def _require_commit(self, data: datasets.Dataset) -> None:
        """`datasets` takes any cached commit where the hub does not answer, whatever was asked for."""
        cached = {Path(file["filename"]).parent.name for file in data.cache_files}
        if cached != {self.revision}:
            raise hub.HubUnreachable(
                f"The data set {self.path} at revision {self.revision} is not cached here, only {', '.join(sorted(cached))}"
                " is, and the hub is not in reach.\n  Write dataset.revision=COMMIT for a cached one."
            )

    def _batches(self, data: datasets.Dataset, split: str, limit: int | None) -> _HubBatches:
        return _HubBatches(data, f"{self.path} ({split})", self.data_format, self.columns, limit)


@dataclass(frozen=True)
class _HubBatches:
    """Batches of rows of an Arrow table; can be iterated any number of times."""

    data: datasets.Dataset
    where: str
    data_format: DataFormat
    columns: Mapping[str, str]
    limit: int | None

    def __iter__(self) -> Iterator[list[Row | BadRow]]:
        shape: Columns | None = None
        features = self.data.features
        unseen = Unseen(self.columns, self.where)
        rows = len(self.data) if self.limit is None else min(self.limit, len(self.data))
        for start in range(0, rows, BATCH):
            columns: dict[str, list[Any]] = self.data[start : min(start + BATCH, rows)]
            columns = {name: [_present(cell, features[name]) for cell in cells] for name, cells in columns.items()}
            raws = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
            unseen.look(raws[0])
            unseen.stop_if_any()
            shape = shape or recognise(raws, self.data_format, self.columns, self.where)
            batch: list[Row | BadRow] = []
            for number, raw in enumerate(raws, start + 1):
                batch += shape.rows(raw, Source(self.where, number, "row"))
            yield batch


def _present(value: Any, feature: Any) -> Any:
    """A cell without the keys that Arrow filled in: a struct has all keys of its column, those absent as null.

    JSON columns hold each row as it was written, and stay as they are.
    """
    if isinstance(value, dict) and isinstance(feature, dict):
        return {key: _present(child, feature[key]) for key, child in value.items() if child is not None}
    inner = getattr(feature, "feature", None)
    if isinstance(value, list) and inner is not None:
        return [_present(child, inner) for child in value]
    return value


def _contents(data: datasets.Dataset) -> list[str]:
    return [content_hash(Path(file["filename"])) for file in data.cache_files]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
