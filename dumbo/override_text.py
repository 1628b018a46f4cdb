"""Values as Hydra's override grammar reads them: the words that dumbo itself writes must survive their own parser."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

BARE = re.compile(r"[A-Za-z_/][\w./-]*")
WORDS = ("null", "true", "false", "inf", "nan")


def value_text(value: Any) -> str:
    """A value as one would type it behind `KEY=`.

    >>> value_text(["a b", 1e-4, True])
    '["a b",0.0001,true]'
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(value_text(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{_key(key)}:{value_text(item)}' for key, item in value.items())}}}"
    text = str(value)
    if text.startswith("${") and text.endswith("}"):
        return text
    return text if BARE.fullmatch(text) and text.lower() not in WORDS else quoted(text)


def quoted(text: str) -> str:
    """Text between quotes, whatever is in it: double quotes where possible, the shell's own being single.

    A backslash stands for itself, but before a quote, where it must be doubled.
    """
    quote = "'" if '"' in text else '"'
    inner = re.sub(rf"(\\*){quote}", lambda found: found.group(1) * 2 + "\\" + quote, text)
    return quote + re.sub(r"(\\+)$", lambda found: found.group(1) * 2, inner) + quote


def _key(key: Any) -> str:
    return str(key) if BARE.fullmatch(str(key)) else quoted(str(key))
