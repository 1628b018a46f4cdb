"""Why a formatter cannot take one row: formatters raise it, and make a BadRow of it."""

from __future__ import annotations

import json

from dumbo.interfaces import Row


class RowError(ValueError):
    """Why one row cannot be trained on, and the remedy."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.remedy = remedy


def start_of(row: Row, width: int = 120) -> str:
    """The beginning of a row, on one line, for error messages."""
    if row.text is not None:
        text = row.text
    else:
        text = json.dumps(row.messages, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
