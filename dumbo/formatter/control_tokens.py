"""Control tokens inside a row's own text.

`<|im_end|>` typed by a user becomes the real token that ends a turn: the conversation is cut where somebody
wrote about it. Each row is searched before it is rendered; the option says what happens then.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dumbo.formatter.encode import Rendered, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Handling = Literal["error", "escape", "allow"]

PRIVATE = range(0xF0000, 0xFFFFE)
"""Code points nobody's text holds (a private-use plane): stand-ins and markers while a template renders."""
_PRIVATE = re.compile(f"[{chr(PRIVATE[0])}-{chr(PRIVATE[-1])}]").search
MOST_STAND_INS = 0x8000
"""Stand-ins have the first half of them, markers the rest (`loss_mask.py`)."""


class CannotEscape(ValueError):
    """Why the control tokens in a row's text cannot be kept as plain text."""


@functools.lru_cache(maxsize=8)
def control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches every control token of a tokenizer, longest first."""
    texts = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    texts |= {token for token in tokenizer.all_special_tokens if token}
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with `change` applied to every text in it (values, not keys, of mappings)."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: map_strings(child, change) for key, child in value.items()}
    if isinstance(value, list):
        return [map_strings(child, change) for child in value]
    return value


def strings(value: Any) -> list[str]:
    """Every text in a nested value, keys too, in order."""
    found: list[str] = []
    _gather(value, found)
    return found


def _gather(value: Any, found: list[str]) -> None:
    if isinstance(value, str):
        found.append(value)
    elif isinstance(value, dict):
        for key, child in value.items():
            found.append(key)
            _gather(child, found)
    elif isinstance(value, list):
        for child in value:
            _gather(child, found)


@dataclass(frozen=True, slots=True)
class StandIns:
    """Control tokens of a row's text, replaced by private code points until the template has rendered.

    Attributes:
        control: matches the tokenizer's control tokens.
        texts: what each code point stands for, in order of appearance.
    """

    control: re.Pattern[str]
    texts: tuple[str, ...] = ()

    def restore(self, row: Rendered) -> Rendered:
        """The rendering with the texts back in place, and every span moved to fit.

        Literal becomes the whole stretch between two real control tokens that a text stands in: that is the piece
        which a tokenizer takes by itself, so that no token is other than it would be for plain text.
        """
        if not self.texts:
            return row
        pieces: list[str] = []
        standing: list[int] = []
        moved: list[tuple[int, int]] = []  # (position in the rendering, characters gained up to there)
        gained, last = 0, 0
        for match in re.finditer(f"[{chr(PRIVATE[0])}-{chr(PRIVATE[-1])}]", row.text):
            number = ord(match.group()) - PRIVATE[0]
            if number >= len(self.texts):
                continue
            text = self.texts[number]
            pieces += [row.text[last : match.start()], text]
            standing.append(match.start())
            gained += len(text) - 1
            moved.append((match.end(), gained))
            last = match.end()
        pieces.append(row.text[last:])

        def shift(position: int) -> int:
            return position + max((by for at, by in moved if at <= position), default=0)

        return replace(
            row,
            text="".join(pieces),
            trained=tuple((shift(a), shift(b)) for a, b in row.trained),
            reply=(shift(row.reply[0]), shift(row.reply[1])) if row.reply else None,
            literal=tuple(
                (shift(a), shift(b)) for a, b in self._stretches(row.text) if any(a <= at < b for at in standing)
            ),
        )

    def _stretches(self, text: str) -> Iterator[Span]:
        """[start, end) of what lies between the control tokens of a text."""
        last = 0
        for match in self.control.finditer(text):
            yield last, match.start()
            last = match.end()
        yield last, len(text)


def with_stand_ins(value: Any, pattern: re.Pattern[str]) -> tuple[Any, StandIns]:
    """`value` (messages, tools or text) with each control token replaced by a code point of its own.

    Raises:
        CannotEscape: there are too many, or one is a key of a mapping, or private code points are taken.
    """
    if holds_private(value):
        raise CannotEscape("its text holds private-use characters (U+F0000 and up), which escaping needs for itself")
    texts: list[str] = []

    def stand_in(match: re.Match[str]) -> str:
        texts.append(match.group())
        if len(texts) > MOST_STAND_INS:
            raise CannotEscape(f"its text holds more than {MOST_STAND_INS:,} control tokens")
        return chr(PRIVATE[len(texts) - 1])

    changed = map_strings(value, lambda text: pattern.sub(stand_in, text))
    if (key := first_control(changed, pattern)) is not None:
        raise CannotEscape(f"a name in it (a key of a mapping) holds the control token {key}")
    return changed, StandIns(pattern, tuple(texts))


def holds_private(value: Any) -> bool:
    """Whether any text holds a code point that stand-ins and markers need."""
    return any(_PRIVATE(text) is not None for text in strings(value) if not text.isascii())


def count_control(value: Any, pattern: re.Pattern[str]) -> int:
    """How many control tokens stand in the texts of a value."""
    return sum(len(pattern.findall(text)) for text in strings(value))


def first_control(value: Any, pattern: re.Pattern[str]) -> str | None:
    """The first of them."""
    return next((match.group() for text in strings(value) if (match := pattern.search(text))), None)
