"""Text from data, models and files made safe for a terminal: control characters are shown, never obeyed."""

from __future__ import annotations

import unicodedata

BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of text around: a line would read as something it is not."""
SHOWN = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\x1b": "\\e"}


def printable(text: str, keep: str = "") -> str:
    """`text` with control characters, direction marks and lone surrogates as escapes.

    Args:
        keep: control characters to leave as they are ("\\n" where lines are wanted).

    >>> printable("a\\x1b[31mb")
    'a\\\\e[31mb'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in keep or not _controls(char) else _escape(char) for char in text)


def _controls(char: str) -> bool:
    return (
        unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in BIDI or "\U000e0000" <= char <= "\U000e007f"
    )


def _escape(char: str) -> str:
    code = ord(char)
    return SHOWN.get(char) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )


def shortened(text: str, width: int) -> str:
    """The text on one line, at most `width` characters, made safe."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"
