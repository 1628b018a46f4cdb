"""Values of unknown kind as short texts for people."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from dumbo.outputs.report.reading import as_number

NOTHING = "–"
LONGEST = 2000
"""Characters of a value, at most."""
_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxdict, _short.maxstring, _short.maxother = 3, 12, 12, 120, 120


def figure(value: Any) -> str:
    """A number: whole ones with commas, others with four digits that count."""
    number = as_number(value)
    if number is None:
        return NOTHING
    if number == int(number) and (isinstance(number, int) or abs(number) < 1e6):
        return f"{int(number):,}"
    if abs(number) >= 1e12 and not isinstance(number, int):
        return f"{number:.4g}"
    if abs(number) >= 10_000:
        return f"{number:,.0f}"
    return f"{number:,.1f}" if abs(number) >= 1000 else f"{number:.4g}"


def percent(share: Any) -> str:
    number = as_number(share)
    return NOTHING if number is None else f"{100 * number:.4g}%"


def gibibytes(size: Any) -> str:
    """A number of bytes."""
    number = as_number(size)
    return plain(size) if number is None else f"{figure(number / 2**30)} GiB"


def duration(seconds: Any) -> str:
    """`54 s`, `12 min 4 s`, `3 h 20 min`, `2 d 4 h`."""
    number = as_number(seconds)
    if number is None or number < 0:
        return NOTHING
    whole = round(number)
    if number < 10:
        return f"{number:.3g} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def moment(text: Any) -> datetime | None:
    """A time as run.json has it."""
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return found if found is not None and found.tzinfo is not None else None


def plain(value: Any) -> str:
    """Any value, shortened."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return figure(value) if as_number(value) is not None else "not a usual number"
    if isinstance(value, str):
        return cut(value)
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value[:12]):
        more = f" and {len(value) - 12:,} more" if len(value) > 12 else ""
        return cut(", ".join(plain(item) for item in value[:12]) + more) or NOTHING
    if isinstance(value, list | Mapping) and not value:
        return NOTHING
    return cut(_short.repr(value))


def setting(value: Any) -> str:
    """A value of the config, as YAML would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return cut(value) or "''"
    return f"{value:g}" if isinstance(value, float) else cut(_short.repr(value))


def cut(text: str, most: int = LONGEST) -> str:
    """The text, or its start and how much is left out."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} characters more)"
