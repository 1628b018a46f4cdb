"""Files -> raw rows with their line or row numbers, a batch at a time, for `dataset=files`.

Lines come from Polars (which unpacks gzip and zstd as it goes) and are decoded here one by one, so that a broken
one is known by its number and memory stays flat in the file's size. JSON as one value is the exception: it has to
be read whole.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dumbo.dataset import strict_json
from dumbo.dataset.columns import SHAPES, start_of
from dumbo.dataset.decoding import ESCAPED_HALF, HALF, Broken, decoded, holds_half_characters
from dumbo.errors import UserError

BATCH = 1024
Raws = list[tuple[int, Any]]
"""Line or row numbers, from 1, and raw rows."""


def read(file: Path, kind: str, txt_rows: str) -> Iterator[Raws]:
    """Batches of (line or row number from 1, raw row).

    Raises:
        UserError: the file cannot be read as what it is said to be.
    """
    readers = {"jsonl": _jsonl, "json": _json, "parquet": _parquet}
    with _reading(file, kind):
        if kind in readers:
            yield from readers[kind](file)
        elif kind == "txt":
            yield from _txt(file, txt_rows)
        else:
            yield from _separated(file, "\t" if kind == "tsv" else ",")


@contextmanager
def _reading(file: Path, kind: str) -> Iterator[None]:
    """What goes wrong while a file is read becomes a UserError."""
    import polars as pl

    try:
        yield
    except (pl.exceptions.PolarsError, UnicodeDecodeError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "utf" in first.lower():
            raise UserError(_not_utf8(file)) from error
        raise UserError(f"{file} cannot be read as {kind}: {first}.") from error


def _lines(file: Path) -> Iterator[Raws]:
    import polars as pl

    number = 0
    lines = pl.scan_lines(str(file), glob=False)
    for frame in lines.collect_batches(chunk_size=BATCH, maintain_order=True, engine="streaming"):
        for part in frame.iter_slices(BATCH):
            texts = part["line"].to_list()
            if number == 0 and texts:
                texts[0] = texts[0].removeprefix("\ufeff")
            yield list(enumerate(texts, number + 1))
            number += len(texts)


def _not_utf8(file: Path) -> str:
    """The error for a file of another encoding, with the line where that shows (not looked for inside zstd)."""
    where = str(file)
    if not file.name.lower().endswith(".zst"):
        opener = gzip.open if file.name.lower().endswith(".gz") else open
        with opener(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    where = f"{file}, line {number}"
                    break
    return f"{where}: this is not UTF-8.\n  Save the file as UTF-8: iconv -f latin1 -t utf-8 (or utf-16, as it may be)."


def _jsonl(file: Path) -> Iterator[Raws]:
    for lines in json_lines(file):
        yield [(number, decoded(line)) for number, line in lines]


def json_lines(file: Path) -> Iterator[list[tuple[int, str]]]:
    """Batches of (line number from 1, line) of a file of JSON lines, blank ones left out.

    Raises:
        UserError: the file cannot be read as text.
    """
    with _reading(file, "jsonl"):
        for lines in _lines(file):
            batch = [(number, line) for number, line in lines if line and not line.isspace()]
            if batch:
                yield batch


def _json(file: Path) -> Iterator[Raws]:
    text = "\n".join(line for lines in _lines(file) for _, line in lines)
    try:
        data = strict_json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:
            raise UserError(f"{file} holds one JSON value a line.\n  Write dataset.kind=jsonl") from error
        around = text[max(0, error.pos - 40) : error.pos + 40]
        raise UserError(
            f"{file}, line {error.lineno}: this is not JSON ({error.msg}).\n  {start_of(around)}"
        ) from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{file} is not JSON that can be read ({error}).") from error
    if isinstance(data, Mapping):
        lists = [key for key, value in data.items() if isinstance(value, list)]
        one_row = any(set(option) <= set(data) for options in SHAPES.values() for option in options)
        data = data[lists[0]] if len(lists) == 1 and not one_row else [data]
    if not isinstance(data, list):
        raise UserError(f"{file} must hold a list of rows.")
    halves = bool(ESCAPED_HALF.search(text))
    for start in range(0, len(data), BATCH):
        batch: Raws = []
        for number, row in enumerate(data[start : start + BATCH], start + 1):
            half = halves and holds_half_characters(row)
            batch.append((number, Broken(HALF, start_of(json.dumps(row))) if half else row))
        yield batch


def _txt(file: Path, txt_rows: str) -> Iterator[Raws]:
    """Text as rows {"text": …}, numbered by the line on which each begins."""
    if txt_rows == "document":
        yield [(1, {"text": "\n".join(line for lines in _lines(file) for _, line in lines)})]
        return
    paragraph: list[str] = []
    first = 1
    for lines in _lines(file):
        batch: Raws = []
        for number, line in lines:
            if txt_rows == "line":
                if line.strip():
                    batch.append((number, {"text": line}))
            elif line.strip():
                first = first if paragraph else number
                paragraph.append(line)
            elif paragraph:
                batch.append((first, {"text": "\n".join(paragraph)}))
                paragraph = []
        if batch:
            yield batch
    if paragraph:
        yield [(first, {"text": "\n".join(paragraph)})]


def _separated(file: Path, separator: str) -> Iterator[Raws]:
    """CSV and TSV with a header, every cell as text, numbered by the line on which a row begins."""
    csv.field_size_limit(1 << 30)
    lines = (line + "\n" for batch in _lines(file) for _, line in batch)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header: list[str] | None = None
    batch: Raws = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if header is None:
                raise UserError(f"{file}, line {number}: the header cannot be read ({error}).") from error
            last = f" to {reader.line_num}" if reader.line_num > number else ""
            batch.append((number, Broken(f"its quotes do not match, lines {number}{last} ({error})", "")))
            continue
        if not cells:
            continue
        if header is None:
            header = _header(cells, file)
        elif len(cells) != len(header):
            problem = f"it has {len(cells)} fields, the header has {len(header)}"
            batch.append((number, Broken(problem, start_of(separator.join(cells)))))
        else:
            batch.append((number, dict(zip(header, cells, strict=True))))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _header(cells: list[str], file: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{file}: the header names the column '{twice[0]}' twice.")
    return names


def _parquet(file: Path) -> Iterator[Raws]:
    import polars as pl

    number = 0
    scan = pl.scan_parquet(str(file), glob=False)
    for frame in scan.collect_batches(chunk_size=BATCH, maintain_order=True, engine="streaming"):
        for part in frame.iter_slices(BATCH):
            yield [
                (number + index, {key: _without_null(cell) for key, cell in row.items()})
                for index, row in enumerate(part.iter_rows(named=True), 1)
            ]
            number += len(part)


def _without_null(value: Any) -> Any:
    """Parquet gives every struct all keys of its column: keys that are null there were absent."""
    if isinstance(value, dict):
        return {key: _without_null(child) for key, child in value.items() if child is not None}
    if isinstance(value, list):
        return [_without_null(child) for child in value]
    return value
