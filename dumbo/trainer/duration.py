"""Lengths of time as people write them: `90`, `90m`, `2h30m`."""

from __future__ import annotations

from dumbo.errors import UserError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(text: float | str | None, name: str = "max_time") -> float | None:
    """`90`, `90s`, `1.5h`, `2h30m` in seconds; None stays None.

    Raises:
        UserError: not a time.
    """
    if text is None or isinstance(text, int | float):
        return None if text is None else float(text)
    total, number = 0.0, ""
    for char in text.strip().lower():
        if char.isdigit() or char == ".":
            number += char
        elif char in UNITS and number:
            total, number = total + float(number) * UNITS[char], ""
        else:
            raise UserError(f"{name} is seconds, or as in 90m or 2h30m; got '{text}'.")
    return total + (float(number) if number else 0.0)
