"""Numbers as people and JSON read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def millions(number: int) -> str:
    """A count of parameters: 492 k, 134.5 M, 1.24 B."""
    return (
        f"{number / 1e9:.2f} B"
        if number >= 1e9
        else f"{number / 1e6:.1f} M"
        if number >= 1e6
        else f"{number / 1e3:.0f} k"
    )


def finite(value: Any) -> Any:
    """`value` with numbers that JSON has no form for as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [finite(child) for child in value]
    return value


def python_numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A trainer's metrics as JSON has them: numpy's and torch's scalars become Python's."""
    return {key: value.item() if getattr(value, "shape", None) == () else value for key, value in metrics.items()}
