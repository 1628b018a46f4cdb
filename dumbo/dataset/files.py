"""`dataset=files`: rows from files on this disk, read lazily through Polars, a batch at a time.

JSON lines, JSON, CSV, TSV, Parquet and plain text, also gzip and zstd. JSON lines are decoded one by one: a
column-wise reader would infer one type for all of a column and put null keys into tool arguments. So are the lines
of CSV and TSV: a column-wise reader stops at a ragged row without saying where it is. How each kind is read:
`reading.py`.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dumbo.cache import content_hash, key_of
from dumbo.dataset.columns import KNOWN_COLUMNS, Columns, DataFormat, Unseen, recognise
from dumbo.dataset.decoding import NOT_YET_KNOWN, Lines, decoded, rows_of
from dumbo.dataset.reading import json_lines, read
from dumbo.errors import UserError
from dumbo.interfaces import BadRow, Row, Splits
from dumbo.suggest import did_you_mean

Kind = Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "txt"]
SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".pq": "parquet", ".txt": "txt", ".md": "txt", ".text": "txt",
}  # fmt: skip
HELD_OUT_STEMS = ("eval", "valid", "validation", "dev", "test")


@dataclass(frozen=True, kw_only=True)
class Files:
    """Reads files.

    Args:
        path: a file, a glob, a folder, or a list of them.
        kind: auto (by ending), jsonl, json, csv, tsv, parquet, txt.
        data_format: auto (by columns), alpaca, sharegpt, messages, prompt_completion, question_answer, text.
        columns: known column name -> the file's own (dataset.columns.question=frage).
        txt_rows: what a row of a text file is: paragraph (between blank lines), line, or document (the file).
        eval_path: files of held-out rows; null: a fraction of `path`.
        eval_fraction: share of the rows held out when there is no eval_path; 0: none.
        split_seed: which rows that share is; apart from trainer.seed, so that runs of several seeds compare.
        eval_limit: at most so many held-out rows; null: all.
        limit: at most so many rows; null: all.
        on_bad_row: stop, or skip and count.
        answer_pattern: regular expression whose last match's first group is the answer in a reply, for exact match.
    """

    path: str | list[str]
    kind: Kind = "auto"
    data_format: DataFormat = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    txt_rows: Literal["paragraph", "line", "document"] = "paragraph"
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
        for key, value in (("path", self.path), ("eval_path", self.eval_path)):
            if value is not None:
                try:
                    for file in expand(value, f"dataset.{key}"):
                        kind_of_file(file, self.kind)
                except UserError as error:
                    yield str(error)

    def load(self) -> Splits:
        train, held_out = self._files()
        fingerprint = {
            "train": [content_hash(file) for file in train],
            "eval": [content_hash(file) for file in held_out],
            "reading": [self.kind, self.data_format, self.columns, self.txt_rows, self.limit],
            "eval_limit": self.eval_limit if held_out else None,  # how many rows of those files are read at all
        }
        return Splits(
            train=self._batches(train, self.limit),
            eval=self._batches(held_out, self.eval_limit) if held_out else None,
            fingerprint=key_of(fingerprint),
            name=train[0].name if len(train) == 1 else f"{len(train)} files",
            eval_fraction=self.eval_fraction,
            split_seed=self.split_seed,
            eval_limit=self.eval_limit,
            on_bad_row=self.on_bad_row,
            answer_pattern=self.answer_pattern,
        )

    def _files(self) -> tuple[list[Path], list[Path]]:
        """(train, held out); a folder that names its parts train and test (or dev, …) is taken at its word."""
        train = expand(self.path, "dataset.path")
        if self.eval_path is not None:
            return train, expand(self.eval_path, "dataset.eval_path")
        if isinstance(self.path, str) and Path(self.path).expanduser().is_dir():
            named = [file for file in train if stem(file).startswith("train")]
            held_out = [file for file in train if stem(file).startswith(HELD_OUT_STEMS)]
            if named:
                return named, held_out
        return train, []

    def _batches(self, files: list[Path], limit: int | None) -> FileBatches:
        return FileBatches(tuple(files), self.kind, self.data_format, self.columns, self.txt_rows, limit)


def check_common(
    eval_fraction: float,
    eval_limit: int | None,
    limit: int | None,
    answer_pattern: str | None,
    columns: Mapping[str, str],
) -> None:
    """What every dataset's options must fulfil. Raises UserError."""
    import re

    if not 0 <= eval_fraction < 1:
        raise UserError(f"eval_fraction is a share of the rows, from 0 to below 1; got {eval_fraction}.")
    for name, value in (("eval_limit", eval_limit), ("limit", limit)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, or null for all rows; got {value}.")
    for known in columns:
        if known not in KNOWN_COLUMNS:
            raise UserError(
                f"columns.{known}: there is no such known column.{did_you_mean(known, KNOWN_COLUMNS)}\n  known: {', '.join(KNOWN_COLUMNS)}"
            )
    if answer_pattern is not None:
        try:
            groups = re.compile(answer_pattern).groups
        except re.error as error:
            raise UserError(f"answer_pattern is not a regular expression: {error}.") from error
        if groups < 1:
            raise UserError(
                f"answer_pattern needs a group that holds the answer, as in '#### (.*)'; got '{answer_pattern}'."
            )


def stem(file: Path) -> str:
    """A file's name without its endings, in lower case."""
    return file.name.split(".")[0].lower()


def expand(paths: str | list[str], key: str) -> list[Path]:
    """The files that paths, globs and folders stand for, each once, in order.

    Raises:
        UserError: nothing there; with the nearest name.
    """
    files: list[Path] = []
    for text in [paths] if isinstance(paths, str) else paths:
        path = Path(text).expanduser()
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.is_file() and ending(file) in SUFFIXES)
            if not found:
                raise UserError(f"{key}: the folder '{text}' holds no data file ({', '.join(SUFFIXES)}).")
        elif path.is_file():
            found = [path]  # before globs: a name may hold brackets
        elif glob.has_magic(text):
            found = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
            if not found:
                raise UserError(f"{key}: no file matches '{text}'.")
        else:
            siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"{key}: there is no file '{text}'.{did_you_mean(path.name, siblings)}")
        files += [file for file in found if file not in files]
    if not files:
        raise UserError(f"{key} names no file.")
    for file in files:
        if file.stat().st_size == 0:
            raise UserError(f"{key}: the file '{file}' is empty.")
    return files


def ending(file: Path) -> str:
    """The ending that tells the kind, compression aside: `.jsonl` of `a.jsonl.gz`."""
    name = file.name.lower()
    for packed in (".gz", ".zst"):
        name = name.removesuffix(packed)
    return Path(name).suffix


def kind_of_file(file: Path, kind: Kind) -> str:
    """What to read a file as. Raises UserError for an unknown ending."""
    if kind != "auto":
        return kind
    if ending(file) not in SUFFIXES:
        raise UserError(
            f"dataset: the ending of '{file.name}' says nothing of its kind.\n"
            f"  Write dataset.kind=jsonl (or json, csv, tsv, parquet, txt); known endings: {', '.join(SUFFIXES)}, also with .gz or .zst"
        )
    return SUFFIXES[ending(file)]


@dataclass(frozen=True)
class FileBatches:
    """Batches of rows from files; can be iterated any number of times."""

    files: tuple[Path, ...]
    kind: Kind
    data_format: DataFormat
    columns: Mapping[str, str]
    txt_rows: str
    limit: int | None

    def __iter__(self) -> Iterator[list[Row | BadRow]]:
        where = str(self.files[0]) if len(self.files) == 1 else f"{len(self.files)} files"
        unseen = Unseen(self.columns, where)
        left = self.limit
        for file in self.files:
            for batch in self._file(file, unseen):
                if left is not None:
                    batch = batch[:left]
                    left -= len(batch)
                if batch:
                    yield batch
                if left == 0:
                    break
            if left == 0:
                break
        unseen.stop_if_any()

    def in_parts(self) -> Iterator[list[Row | BadRow] | Lines]:
        """The same rows, those of JSON lines undecoded where nothing has to be known of each: see `Lines`."""
        if self.limit is not None or self.columns:
            yield from self
            return
        for file in self.files:
            if kind_of_file(file, self.kind) == "jsonl":
                yield from self._lines(file)
            else:
                yield from self._file(file, Unseen({}, ""))

    def _lines(self, file: Path) -> Iterator[Lines]:
        columns: Columns | None = None
        for lines in json_lines(file):
            if columns is None:
                raws = [decoded(line) for _, line in lines]
                if any(isinstance(raw, Mapping) for raw in raws):
                    columns = recognise(raws, self.data_format, self.columns, str(file))
            yield Lines(str(file), lines, columns or NOT_YET_KNOWN)

    def _file(self, file: Path, unseen: Unseen) -> Iterator[list[Row | BadRow]]:
        kind = kind_of_file(file, self.kind)
        unit = "row" if kind in ("json", "parquet") else "line"
        columns: Columns | None = Columns("text", {}) if kind == "txt" else None
        for raws in read(file, kind, self.txt_rows):
            if columns is None and any(isinstance(raw, Mapping) for _, raw in raws):
                columns = recognise((raw for _, raw in raws), self.data_format, self.columns, str(file))
            for _, raw in raws:
                unseen.look(raw)
            yield rows_of(raws, columns or NOT_YET_KNOWN, str(file), unit)
