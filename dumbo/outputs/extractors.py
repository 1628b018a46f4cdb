"""Which part of a text is its answer: by a name of these, or by a data set's own pattern (`dataset.answer_pattern`).

text     the whole text, white space around it left out (quiz)
gsm8k    the number after the last ####, as a number: 1,234 and $1234.00 and 1234. are one answer

The form of GSM8K's answers: Cobbe et al. 2021, arXiv:2110.14168.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

NUMBER_AFTER_HASHES = re.compile(r"####[ \t]*([-+]?)[ \t]*\$?[ \t]*([-+]?)((?:[0-9][0-9,]*)?(?:\.[0-9]+)?)")


@dataclass(frozen=True)
class Extractor:
    """One way of finding the answer in a text.

    Attributes:
        name: as it is typed, and as it stands in evaluation.json; `answer_pattern` for a data set's own.
        find: text -> answer; None where the text has none.
    """

    name: str
    find: Callable[[str], str | None]


def number_after_hashes(text: str) -> str | None:
    """The number after the last ####, without commas, currency, a plus, or zeros that say nothing.

    >>> number_after_hashes("so it is\\n#### -1,234.50.")
    '-1234.5'
    """
    found = [match for match in NUMBER_AFTER_HASHES.finditer(text) if match.group(3).strip(",")]
    if not found:
        return None
    before, after, digits = found[-1].groups()
    number = Decimal(digits.replace(",", ""))
    shown = format(number.normalize(), "f") if number else "0"
    return f"-{shown}" if "-" in (before, after) and number else shown


def whole_text(text: str) -> str | None:
    """The text without white space around it; None where nothing is left."""
    return text.strip() or None


def answer_in(pattern: str, text: str) -> str | None:
    """The last match's first group, without white space around it or commas in numbers."""
    found = re.findall(pattern, text)
    if not found:
        return None
    last = found[-1] if isinstance(found[-1], str) else found[-1][0]
    return re.sub(r"(?<=\d),(?=\d{3})", "", last.strip())


NAMED = {
    "gsm8k": Extractor("gsm8k", number_after_hashes),
    "text": Extractor("text", whole_text),
}
BY_PATTERN = {r"#### *(.*\S)": "gsm8k", r"(?s)^\s*(.*\S)": "text"}
"""The patterns of gsm8k and quiz, and which extractor says the same by name."""


def extractor_for(pattern: str) -> Extractor:
    """The extractor that a data set's pattern stands for."""
    name = BY_PATTERN.get(pattern)
    return NAMED[name] if name else Extractor("answer_pattern", lambda text: answer_in(pattern, text))
