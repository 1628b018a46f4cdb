"""Does a value of the config fit the type its constructor declares?

OmegaConf types what is registered with it; plugins are not registered, so `bind.py` asks here, from the
signature alone. Values arrive as plain Python (resolved, no OmegaConf containers).
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, Union, get_args, get_origin


def misfit(value: Any, annotation: Any) -> str | None:
    """What the annotation wants, in words, when `value` does not fit it; None when it fits.

    An int fits a float (never a bool); a list fits any sequence; classes that are no builtin (nested plugins
    are instances by the time they are passed) fit anything but are judged where they are built.
    """
    return None if _fits(value, annotation) else describe(annotation)


def _fits(value: Any, annotation: Any) -> bool:
    if annotation is Any:
        return True
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in args)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in args)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    container = origin or annotation
    if container in (dict, Mapping) or _is_subclass(container, Mapping):
        return isinstance(value, Mapping) and (
            not args or all(_fits(k, args[0]) and _fits(v, args[1]) for k, v in value.items())
        )
    if container in (list, tuple, Sequence) or _is_subclass(container, Sequence):
        return isinstance(value, list | tuple) and (not args or all(_fits(item, args[0]) for item in value))
    if isinstance(annotation, type) and is_dataclass(annotation):
        return isinstance(value, annotation | Mapping)  # a plain dataclass without _target_ arrives as its mapping
    return True


def _is_subclass(cls: Any, parent: type) -> bool:
    return isinstance(cls, type) and cls is not str and issubclass(cls, parent)


def literals(annotation: Any) -> list[str]:
    """The options of a Literal, alone or in a union."""
    if get_origin(annotation) is Literal:
        return [str(option) for option in get_args(annotation)]
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for arg in get_args(annotation) for option in literals(arg)]
    return []


def describe(annotation: Any) -> str:
    """The annotation in words a user would use: ``a number``, ``one of auto, stop, skip``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in args)
    if origin in (Union, types.UnionType):
        literals = [option for arg in args if get_origin(arg) is Literal for option in get_args(arg)]
        words = [describe(arg) for arg in args if get_origin(arg) is not Literal]
        if literals:
            words.insert(0, "one of " + ", ".join(map(str, literals)))
        return " or ".join(words)
    names = {
        float: "a number",
        int: "a whole number",
        bool: "true or false",
        str: "text",
        type(None): "null",
        Any: "anything",
    }
    if annotation is None:
        return "null"
    if annotation in names:
        return names[annotation]
    container = origin or annotation
    if container in (dict, Mapping):
        return "a mapping" + (f" of {describe(args[0])} to {describe(args[1])}" if args and args[1] is not Any else "")
    if container in (list, tuple, Sequence):
        return "a list" + (f" of {_plural(describe(args[0]))}" if args else "")
    if isinstance(annotation, type) and is_dataclass(annotation):
        return "a mapping with the keys " + ", ".join(annotation.__dataclass_fields__)
    return getattr(annotation, "__name__", str(annotation))


def _plural(words: str) -> str:
    return {"text": "texts", "a number": "numbers", "a whole number": "whole numbers"}.get(words, words)
