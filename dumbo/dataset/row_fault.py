"""What is wrong with one raw row, and the values that every row holds: text, JSON written as text.

columns.py and what it uses (turns.py, parts.py, tool_calls.py) raise a RowFault; columns.py makes it a BadRow.
"""

from __future__ import annotations

import json
from typing import Any

from dumbo.dataset import strict_json


class RowFault(ValueError):
    """What is wrong with one raw row."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.remedy = remedy


def text_of(value: Any, name: str, *, empty: bool = False) -> str:
    """A text value; a RowFault when it is of another type, or empty where it must not be."""
    if value is None and empty:
        return ""
    if not isinstance(value, str):
        raise RowFault(f"'{name}' is {kind_of_value(value)}, text is wanted")
    if not empty and not value.strip():
        raise RowFault(f"'{name}' is empty", "Fill it in")
    return value


def kind_of_value(value: Any) -> str:
    """What a value is that is no text, in words."""
    names = {dict: "a mapping", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value}")


def shown(value: Any) -> str:
    """A value as a fault names it."""
    return f"'{value}'" if isinstance(value, str) else kind_of_value(value)


def decoded(text: str, what: str) -> Any:
    """The value of a JSON text inside a row; a RowFault that begins with `what` where it is none."""
    try:
        return strict_json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowFault(f"{what} not JSON ({strict_json.fault_in(error)})") from error


def require_finite(value: Any, what: str) -> None:
    """NaN and Infinity are read where JSON holds them, and would be written out as words that no JSON reader takes."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise RowFault(f"{what} hold NaN or Infinity, which are no JSON") from error
