"""Conversations put into a template's form: what rendering them, and finding their turns, would give, without either.

A form (`tracing.py`) is made once for each order of roles, and is right for every text. That a turn begins where the
rendering of what precedes it ends is seen in the forms: the one of the messages before it, with a generation prompt, is
how the whole one begins. What the forms do not cover is rendered (`conversation.py`): tools, reasoning, blank texts,
control tokens, and templates that look at what is said. One row in CHECKED is rendered all the same, and compared.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import jinja2

from dumbo.formatter.control_tokens import holds_private
from dumbo.formatter.encode import Span
from dumbo.formatter.loss_mask import Profile
from dumbo.formatter.traceable import Untraceable
from dumbo.formatter.tracing import FIRST_MARK, Place, Trace, Tracer
from dumbo.interfaces import Row

CHECKED = 64
"""Of so many conversations that a form is used for, one is rendered too."""
MOST_FORMS = 512
"""Orders of roles that forms are kept for."""
LONGEST = 256
"""Messages of the longest conversation that a form is made for."""
ROLES = ("system", "user", "assistant")
KEYS = ("role", "content")
"""Of the messages that forms are made with, in their order, which a template may see."""
_MARKS = re.compile(f"([{chr(FIRST_MARK)}-{chr(0x10FFFD)}])")

Spans = dict[int, Span]
Template = tuple[str, jinja2.Environment, dict[str, Any]]
"""A template's text, the environment that it is compiled in, and what it is given besides the conversation."""


@dataclass(frozen=True, slots=True)
class Form:
    """The rendering of all conversations of one order of roles.

    Attributes:
        fixed: the texts around the contents, one more than there are contents.
        places: the contents.
        turns: of each assistant message: its number, how many contents stand before its turn, how many characters of
            fixed text do, and which of the contents is its own.
        answered_no: (message, method, argument): the form is right where each of these is false.
    """

    fixed: tuple[str, ...]
    places: tuple[Place, ...]
    turns: tuple[tuple[int, int, int, int], ...]
    answered_no: tuple[tuple[Place, str, str], ...]

    def filled(self, contents: Sequence[str], end: str) -> tuple[str, Spans] | None:
        """The rendering and the span of each assistant turn, which `end` ends; None where it has to be looked at."""
        for place, method, argument in self.answered_no:
            if getattr(place.value(contents[place.message]), method)(argument):
                return None
        values = [place.value(contents[place.message]) for place in self.places]
        pieces = [*self.fixed, *values]
        pieces[::2], pieces[1::2] = self.fixed, values
        text = "".join(pieces)
        before = list(accumulate(map(len, values), initial=0))
        fixed = list(accumulate(map(len, self.fixed)))
        spans: Spans = {}
        last = 0
        for number, contents_before, fixed_before, own in self.turns:
            start = before[contents_before] + fixed_before
            at = text.find(end, start)
            said = before[own] + fixed[own]
            if at < 0 or start < last or said < start or said + len(values[own]) > at:
                return None
            spans[number] = (start, last := at + len(end))
        return text, spans


class Forms:
    """The forms of one template.

    Args:
        tracer: of the template.
        profile: of the template; a turn ends with a token.
        control: matches the tokenizer's control tokens.
        reasoning: whether the template renders reasoning, which is taken out of a content that begins with it.

    Attributes:
        due: whether the conversation that was filled in last is to be rendered too.
    """

    def __init__(self, tracer: Tracer, profile: Profile, control: re.Pattern[str], *, reasoning: bool) -> None:
        self._tracer, self._profile, self._control, self._reasoning = tracer, profile, control, reasoning
        self._forms: dict[tuple[str, ...], Form | None] = {}
        self._used: Counter[tuple[str, ...]] = Counter()
        self.due = False

    @classmethod
    def of(
        cls,
        template: Template | None,
        profile: Profile,
        control: re.Pattern[str],
        *,
        reasoning: bool,
    ) -> Forms | None:
        """The forms of a template; None where there can be none."""
        if template is None or profile.end is None:
            return None
        try:
            return cls(Tracer(*template), profile, control, reasoning=reasoning)
        except Untraceable:
            return None

    def filled(self, row: Row) -> tuple[str, Spans] | None:
        """The rendering of a row and its assistant turns; None where it has to be rendered."""
        if row.tools or not row.messages:
            return None
        roles: list[str] = []
        contents: list[str] = []
        for message in row.messages:
            if tuple(message) != KEYS or type(content := message["content"]) is not str or not self._plain(content):
                return None
            roles.append(message["role"])
            contents.append(content)
        order = tuple(roles)
        form = self._form(order)
        found = form.filled(contents, str(self._profile.end)) if form is not None else None
        if found is not None:
            self._used[order] += 1
            self.due = self._used[order] % CHECKED == 1
        return found

    def _plain(self, content: str) -> bool:
        """Whether a content is nothing but text: not blank, no control token in it, no code point that masks need."""
        return not (
            not content
            or content.isspace()
            or self._control.search(content)
            or (self._reasoning and "<think>" in content)
            or (not content.isascii() and holds_private(content))
        )

    def _form(self, roles: tuple[str, ...]) -> Form | None:
        if roles not in self._forms:
            if len(self._forms) == MOST_FORMS or len(roles) > LONGEST or not set(roles) <= set(ROLES):
                return None
            try:
                self._forms[roles] = self._made(roles)
            except Untraceable:
                self._forms[roles] = None
        return self._forms[roles]

    def _made(self, roles: tuple[str, ...]) -> Form:
        trace = Trace()
        whole = self._tracer.form(trace, roles, add_generation_prompt=False)
        turns = []
        for number in [number for number, role in enumerate(roles) if role == "assistant"]:
            before = self._tracer.form(trace, roles[:number], add_generation_prompt=True) + self._profile.header
            if number == 0 or not whole.startswith(before):
                raise Untraceable("what precedes a turn is not how the whole begins")
            marks = len(_MARKS.findall(before))
            turns.append((number, marks, len(before) - marks))
        parts = _MARKS.split(whole)
        places = tuple(trace.places[ord(mark) - FIRST_MARK] for mark in parts[1::2])
        own = [[at for at, place in enumerate(places) if place.message == number] for number in range(len(roles))]
        if not all(own) or not turns or any(len(own[number]) != 1 for number, _, _ in turns):
            raise Untraceable("a content is left out, or an answer repeated")
        return Form(
            tuple(parts[::2]),
            places,
            tuple((number, marks, fixed, own[number][0]) for number, marks, fixed in turns),
            tuple(dict.fromkeys(trace.answered_no)),
        )
