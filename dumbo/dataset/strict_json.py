"""JSON of data, in which a key may stand only once in a mapping: `json.loads` reads the last of its values, silently."""

from __future__ import annotations

import json
from typing import Any


def loads(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        json.JSONDecodeError: it is not JSON; with the place of the fault.
        ValueError: a key twice in one mapping, or a number too long to read.
        RecursionError: it is nested too deep.
    """
    return _DECODER.decode(text)


def fault_in(error: ValueError | RecursionError) -> str:
    """What `loads` found, in words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at {error.pos}"
    return "nested too deep" if isinstance(error, RecursionError) else str(error)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{twice}' stands twice in one mapping")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_mapping)
