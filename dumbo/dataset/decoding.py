"""JSON lines -> raw rows -> rows, in whichever process: reading.py reads the lines, files.py hands them out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dumbo.dataset import strict_json
from dumbo.dataset.columns import Columns, start_of
from dumbo.interfaces import BadRow, Row, Source

ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape of half a UTF-16 character: fine in pairs, no text alone."""
HALF = "its text holds half a character (an escape \\ud800 to \\udfff without its other half)"
NOT_YET_KNOWN = Columns("text", {})
"""For rows before any that has columns: each of them is bad, whatever the shape."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A line that could not be decoded."""

    problem: str
    start: str


def decoded(line: str) -> Any:
    """The value of a JSON line, or what is wrong with it (`Broken`)."""
    try:
        value = strict_json.loads(line)
    except json.JSONDecodeError as error:
        return Broken(f"this line is not JSON ({error.msg} at character {error.pos + 1})", start_of(line))
    except RecursionError:
        return Broken("this line is nested too deep", start_of(line))
    except ValueError as error:  # a key twice, a number of thousands of digits
        return Broken(f"this line is not JSON that can be read ({error})", start_of(line))
    if ESCAPED_HALF.search(line) and holds_half_characters(value):
        return Broken(HALF, start_of(line))
    return value


def holds_half_characters(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


@dataclass(frozen=True, slots=True)
class Lines:
    """A batch of JSON lines, to be decoded where they are needed: in another process, say.

    Attributes:
        lines: line numbers, from 1, and lines.
    """

    file: str
    lines: list[tuple[int, str]]
    columns: Columns

    def rows(self) -> list[Row | BadRow]:
        """The rows."""
        return rows_of(((number, decoded(line)) for number, line in self.lines), self.columns, self.file, "line")


def rows_of(raws: Iterable[tuple[int, Any]], columns: Columns, file: str, unit: str) -> list[Row | BadRow]:
    """Numbered raw rows of a file as rows."""
    batch: list[Row | BadRow] = []
    for number, raw in raws:
        source = Source(file, number, unit)
        if isinstance(raw, Broken):
            batch.append(BadRow(source, raw.problem, raw.start))
        else:
            batch += columns.rows(raw, source)
    return batch
