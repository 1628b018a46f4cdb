"""Which tokenizers cut texts into words and look at each word alone, and by which pattern they cut.

`words.py` asks. A pattern of the library tokenizers (Oniguruma) is told in Python's `re`, over characters whose class no
Unicode version disputes; where the two engines might read it differently, there is none.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

STEADY = ((0x00, 0x17E), (0x180, 0x24F), (0x2010, 0x2027), (0x2030, 0x205E), (0x20A0, 0x20BF))
"""Code points assigned long ago that no normalisation changes: Latin, punctuation, currencies (U+017F is an s)."""
SPACES = "\\t-\\r \\x85\\xa0"
"""White space among them, inside a class."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How ByteLevel cuts words."""
GPT2_BETWEEN_DIGITS = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""The same where each digit was taken out before: what stands before a digit is at the end of its text."""


def pattern_of(backend: Any) -> str | None:
    """The words of a tokenizer as a pattern for `translated`; None where it does more than cut words and merge bytes."""
    pattern = _pattern_of(_state(backend.pre_tokenizer))
    if pattern is None or not _merges_bytes(backend.model) or not _keeps_places(_state(backend.post_processor)):
        return None
    normalizer = _state(backend.normalizer)
    if normalizer is not None and normalizer["type"] != "NFC":
        return None
    added = backend.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip or token.single_word or token.normalized for token in added):
        return None
    return pattern


def _state(part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as tokenizer.json has it."""
    return json.loads(part.__getstate__()) if part is not None else None


def _merges_bytes(model: Any) -> bool:
    """Whether a model is BPE without chance and without marks of its own on words."""
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    return (
        type(model).__name__ == "BPE"
        and not model.dropout
        and not model.byte_fallback
        and not any(getattr(model, affix) for affix in affixes)
    )


def _keeps_places(state: dict[str, Any] | None) -> bool:
    """Whether what follows the model leaves the tokens' places alone (trimming moves them past spaces)."""
    if state is None:
        return True
    if state["type"] == "Sequence":
        return all(_keeps_places(part) for part in state["processors"])
    return state["type"] == "TemplateProcessing" or (state["type"] == "ByteLevel" and not state["trim_offsets"])


def _pattern_of(state: dict[str, Any] | None) -> str | None:
    """The words of a pre-tokenizer; None where it is of another kind."""
    if state is None:
        return None
    parts = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    last = parts[-1]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if len(parts) == 1:
        return GPT2 if last["use_regex"] else None
    if len(parts) != 2:
        return None
    first = parts[0]
    if first == {"type": "Digits", "individual_digits": True} and last["use_regex"]:
        return GPT2_BETWEEN_DIGITS
    isolated = first["type"] == "Split" and first["behavior"] == "Isolated" and not first["invert"]
    if isolated and "Regex" in first["pattern"] and not last["use_regex"]:
        return str(first["pattern"]["Regex"])
    return None


def translated(pattern: str) -> str | None:
    r"""An Oniguruma pattern in Python's `re`, over STEADY; None where it uses more than \p{L}, \p{N} and \s."""
    plain = re.sub(r"\\p\{\w+\}", "P", pattern)
    if re.search(r"[}+*?]\+|&&|\[\[|\(\?(?!:|i:|!|=)", plain):
        return None  # possessive repeats, set operations, other groups: the two engines might read them differently
    classes = {"\\p{L}": class_of("L"), "\\p{N}": class_of("N"), "\\s": SPACES}
    done, inside = [], False
    for token in re.findall(r"\\p\{\w+\}|\\.|.", pattern, re.DOTALL):
        if token in classes:
            done.append(classes[token] if inside else f"[{classes[token]}]")
        elif token == "\\S" and not inside:
            done.append(f"[^{SPACES}]")
        elif token.startswith("\\") and token not in ("\\r", "\\n"):
            return None
        else:
            inside = (inside or token == "[") and token != "]"
            done.append(token)
    return "".join(done)


def class_of(category: str) -> str:
    """The steady characters of a Unicode category, as ranges inside a class."""
    points = [point for a, b in STEADY for point in range(a, b + 1) if unicodedata.category(chr(point))[0] == category]
    ranges: list[list[int]] = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "".join(f"{chr(a)}-{chr(b)}" for a, b in ranges)
