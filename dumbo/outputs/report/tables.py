"""What the page shows besides curves and samples: tables, each with a caption; and facts of unknown shape as one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dumbo.outputs.report.values import cut, plain

MOST_ROWS = 200
DEEPEST = 6


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        cells: the first names the row.
        state: "good", "bad", "warn", or nothing; shown by colour and by a word.
    """

    cells: tuple[str, ...]
    state: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        head: names of the columns; none for a plain list of names and values.
        numbers: columns that are set to the right.
    """

    caption: str
    rows: list[Row]
    head: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: its anchor.
        lead: sentences above its tables.
        code: (what it is, a command) to copy.
        folded: (title, text) that is opened by a click.
    """

    name: str
    title: str
    tables: tuple[Table, ...] = ()
    lead: tuple[str, ...] = ()
    code: tuple[tuple[str, str], ...] = ()
    folded: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.lead or self.code or self.folded or any(table.rows for table in self.tables))

    def told(self) -> list[dict[str, Any]]:
        """Its tables, for programs."""
        return [
            {"caption": table.caption, "head": table.head, "rows": [row.cells for row in table.rows]}
            for table in self.tables
            if table.rows
        ]


def rows(pairs: Mapping[str, Any]) -> list[Row]:
    """Names and values; those that are None are left out."""
    return [Row((name, plain(value))) for name, value in pairs.items() if value is not None]


def flat(caption: str, facts: Mapping[str, Any], without: tuple[str, ...] = ()) -> Table:
    """Facts of any shape as names and values."""
    leaves = ((name, value) for name, value in leaves_of(facts) if name.split(".")[0] not in without)
    few = list(itertools.islice(leaves, MOST_ROWS + 1))
    shown = [Row((spoken(name), plain(value))) for name, value in few[:MOST_ROWS] if value is not None]
    if len(few) > MOST_ROWS:
        shown.append(Row(("…", "the rest is in the file")))
    return Table(caption, shown)


def leaves_of(node: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """`{"a": {"b": 1}}` as ("a.b", 1), lazily; what is nested too deep stays one value."""
    for key, value in node.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value and depth < DEEPEST:
            yield from leaves_of(value, name, depth + 1)
        else:
            yield name, value


def spoken(name: str) -> str:
    """`peak_memory_gib` as `peak memory gib`."""
    return cut(name.replace("_", " "), 200)
