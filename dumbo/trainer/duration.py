"""Lengths of time as people write them: `90`, `90m`, `2h30m`."""

from __future__ import annotations

import math
import re

from dumbo.errors import UserError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
WHOLE = re.compile(rf"(?:{NUMBER}[smhd])*(?:{NUMBER})?")
PART = re.compile(rf"{NUMBER}([smhd]?)")


def seconds_of(text: float | str | None, name: str = "max_time") -> float | None:
    """`90`, `90s`, `1.5h`, `2h30m` in seconds; None stays None.

    Raises:
        UserError: not a time, or none above 0.
    """
    if text is None:
        return None
    if isinstance(text, str):
        plain = text.strip().lower()
        read = PART.findall(plain) if plain.isascii() and WHOLE.fullmatch(plain) else []
        seconds = sum(float(number) * UNITS[unit] for number, unit in read)
    else:
        seconds = float(text)
    if not 0 < seconds < math.inf:
        raise UserError(f"{name} is seconds above 0, or as in 90m or 2h30m; got '{text}'.")
    return seconds
