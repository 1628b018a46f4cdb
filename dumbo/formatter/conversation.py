"""Conversations -> examples, for any template: what `formatter=chat` and `formatter=jinja` share.

row -> control tokens in its text? -> render -> spans of the turns -> tokenise the batch -> labels

Rows that hold nothing but texts are put into the template's form instead, where it has one (`forms.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dumbo.formatter.abilities import Abilities, Safe, abilities_of
from dumbo.formatter.control_tokens import (
    CannotEscape,
    Handling,
    StandIns,
    control_pattern,
    count_control,
    first_control,
    holds_private,
    strings,
    with_stand_ins,
)
from dumbo.formatter.encode import Rendered
from dumbo.formatter.examples import examples_of
from dumbo.formatter.forms import Forms, Template
from dumbo.formatter.loss_mask import MaskError, Profile, Render, assistant_spans, profile_of
from dumbo.formatter.row_error import RowError, start_of
from dumbo.formatter.tool_text import as_text
from dumbo.interfaces import BadRow, Example, Message, Row, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LossOn = Literal["assistant", "last", "all", "field"]


@dataclass(frozen=True)
class Conversations:
    """Formats conversations with one template and one tokenizer.

    Args:
        render: the template.
        tokenizer: a fast tokenizer.
        loss_on: assistant, last, all or field.
        special_tokens_in_text: error, escape or allow.
        tool_calls: native or as_text.
        append_eos: end a rendering that lacks the tokenizer's eos with it, as part of the last turn.
    """

    render: Render
    tokenizer: PreTrainedTokenizerBase
    profile: Profile
    abilities: Abilities
    loss_on: LossOn
    special_tokens_in_text: Handling
    tool_calls: Literal["native", "as_text"]
    append_eos: bool = False
    forms: Forms | None = None

    @classmethod
    def of(
        cls, render: Render, tokenizer: PreTrainedTokenizerBase, template: Template | None = None, **options: Any
    ) -> Conversations:
        """Probes the template first. Raises MaskError when it does not render a plain conversation.

        Args:
            template: what `render` renders, for forms of it.
        """
        safe, control = Safe(render), control_pattern(tokenizer)
        profile, abilities = profile_of(safe, control), abilities_of(safe)
        forms = Forms.of(template, profile, control, reasoning=abilities.reasoning)
        return cls(safe, tokenizer, profile, abilities, forms=forms, **options)

    def format(self, rows: Sequence[Row]) -> list[Example | BadRow]:
        """A batch of rows, each to its example or to why it has none."""
        rendered: list[tuple[Source, Rendered, dict[str, int]] | BadRow] = []
        for row in rows:
            try:
                rendered.append((row.source, *self._render_row(row)))
            except (RowError, MaskError, CannotEscape) as error:
                rendered.append(BadRow(row.source, str(error), start_of(row), getattr(error, "remedy", "")))
        return examples_of(rendered, self.tokenizer)

    def _render_row(self, row: Row) -> tuple[Rendered, dict[str, int]]:
        if not row.messages:
            raise RowError("there is no conversation in this row, only text", "Write formatter=text")
        if not any(message["role"] == "assistant" for message in row.messages):
            raise RowError("there is no assistant turn to train on", "Give the row an answer")
        filled = self.forms.filled(row) if self.forms is not None else None
        if filled is None:
            messages, plain, spans, stand_ins, counts = self._rendered(row)
        else:
            if self.forms is not None and self.forms.due:
                self._require_the_same(row, filled)
            messages, (plain, spans), stand_ins, counts = row.messages, filled, None, {}
        unheard = sum(message["role"] == "assistant" and message.get("train") is False for message in messages)
        if unheard and self.loss_on != "field":
            counts["train_marks_ignored"] = unheard
        last = max(spans)
        if self.append_eos:
            eos, bare = str(self.tokenizer.eos_token or ""), plain.rstrip()
            if eos and not bare.endswith(eos) and spans[last][1] >= len(bare):
                plain = bare + eos
                spans[last] = (spans[last][0], len(plain))
        whole = Rendered(plain, self._trained(messages, spans), spans[last], all_tokens=self.loss_on == "all")
        return (stand_ins.restore(whole) if stand_ins is not None else whole), counts

    def _rendered(self, row: Row) -> tuple[list[Message], str, dict[int, tuple[int, int]], StandIns, dict[str, int]]:
        """The messages as they were rendered, the rendering, and the span of each assistant turn in it."""
        messages, tools = self._spelled(row)
        messages, tools, stand_ins, counts = self._control_tokens(messages, tools)
        plain = self.render(messages, tools=tools, add_generation_prompt=False)
        _require_said(messages, plain)
        spans = assistant_spans(self.render, messages, tools, plain, self.profile)
        self._require_rendered(messages, plain, spans, counts)
        return messages, plain, spans, stand_ins, counts

    def _require_the_same(self, row: Row, filled: tuple[str, dict[int, tuple[int, int]]]) -> None:
        """A form that errs must not train."""
        try:
            _, plain, spans, _, counts = self._rendered(row)
        except (RowError, MaskError, CannotEscape) as error:
            raise AssertionError(f"a form takes a row that its chat template refuses: {start_of(row)}") from error
        if (plain, spans, counts) != (*filled, {}):  # not an assert: it holds under python -O too
            raise AssertionError(f"a form of the chat template is wrong: {start_of(row)}")

    def _spelled(self, row: Row) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """The row's messages in the form the template knows; a RowError where it would drop something."""
        messages, tools = list(row.messages), row.tools
        if self.abilities.reasoning:
            messages = [_reasoning_apart(message) for message in messages]
        calls = any(message.get("tool_calls") or message["role"] == "tool" for message in messages)
        reasons = any(message.get("reasoning_content") for message in messages)
        if self.tool_calls == "as_text" and (calls or tools or reasons):
            return as_text(messages, tools, reasoning=not self.abilities.reasoning, system=self.abilities.system), None
        lost = [
            name
            for name, there, able in (
                ("tool calls", calls, self.abilities.tool_calls),
                ("the list of tools", bool(tools), self.abilities.tools),
                ("reasoning", reasons, self.abilities.reasoning),
            )
            if there and not able
        ]
        if lost:
            raise RowError(f"the chat template leaves out {' and '.join(lost)}", "Write formatter.tool_calls=as_text")
        return messages, tools

    def _control_tokens(
        self, messages: list[Message], tools: list[dict[str, Any]] | None
    ) -> tuple[list[Message], list[dict[str, Any]] | None, StandIns, dict[str, int]]:
        own = [messages, tools]
        if holds_private(own):
            raise RowError("its text holds private-use characters (U+F0000 and up), which masks need for themselves")
        pattern = control_pattern(self.tokenizer)
        found = count_control(own, pattern)
        if not found:
            return messages, tools, StandIns(pattern), {}
        counts = {"control_tokens_in_text": found}
        if self.special_tokens_in_text == "error":
            raise RowError(
                f"its text holds the control token {first_control(own, pattern)}",
                "Write formatter.special_tokens_in_text=escape (kept as plain text) or allow",
            )
        if self.special_tokens_in_text == "allow":
            counts["control_tokens_unescaped"] = found
            return messages, tools, StandIns(pattern), counts
        (messages, tools), stand_ins = with_stand_ins(own, pattern)
        return messages, tools, stand_ins, counts

    def _require_rendered(
        self, messages: Sequence[Message], plain: str, spans: dict[int, tuple[int, int]], counts: dict[str, int]
    ) -> None:
        """No answer may be empty, and no call or reasoning may be missing from the rendering."""
        _require_calls(messages, plain)
        for number, message in enumerate(messages):
            said = message.get("content", "").strip()
            if number in spans and not said and not message.get("tool_calls") and not message.get("reasoning_content"):
                raise RowError(f"the answer in message {number + 1} is empty", "Fill it in")
            if (reasoning := message.get("reasoning_content", "").strip()) and reasoning not in plain:
                if number == len(messages) - 1:
                    raise RowError("the chat template leaves out reasoning", "Write formatter.tool_calls=as_text")
                counts["reasoning_dropped_by_template"] = counts.get("reasoning_dropped_by_template", 0) + 1

    def _trained(self, messages: Sequence[Message], spans: dict[int, tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        if self.loss_on == "last":
            return (spans[max(spans)],)
        if self.loss_on != "field":
            return tuple(spans.values())
        marked = [number for number, message in enumerate(messages) if message.get("train")]
        if strange := [number for number in marked if number not in spans]:
            role = messages[strange[0]]["role"]
            raise RowError(
                f"message {strange[0] + 1} says train: true, but its role is {role}; only assistant turns train"
            )
        if not marked:
            raise RowError("no message says train: true (formatter.loss_on=field)")
        return tuple(spans[number] for number in marked)


def _require_said(messages: Sequence[Message], plain: str) -> None:
    """Nothing that was said may be missing from the rendering."""
    for number, message in enumerate(messages, 1):
        said = message.get("content", "").strip()
        if said and said not in plain and json.dumps(said, ensure_ascii=False)[1:-1] not in plain:
            raise RowError(f"the chat template leaves out the {message['role']} message {number}")


def _require_calls(messages: Sequence[Message], plain: str) -> None:
    """Every call must be there with all that it passes: templates may render the first of several, or names alone."""
    names = Counter(call["function"]["name"] for message in messages for call in message.get("tool_calls", []))
    if any(plain.count(name) < number for name, number in names.items()):
        raise RowError("the chat template leaves out tool calls", "Write formatter.tool_calls=as_text")
    for message in messages:
        for call in message.get("tool_calls", []):
            for said in strings(call["function"]["arguments"]):
                spellings = (said, json.dumps(said, ensure_ascii=False)[1:-1], json.dumps(said)[1:-1], repr(said)[1:-1])
                if not any(spelling in plain for spelling in spellings):
                    raise RowError(
                        "the chat template leaves out arguments of tool calls", "Write formatter.tool_calls=as_text"
                    )


def _reasoning_apart(message: Message) -> Message:
    """`<think>…</think>` at the start of an answer becomes its reasoning, for templates that render reasoning."""
    content = message.get("content", "")
    if message["role"] != "assistant" or message.get("reasoning_content") or not content.lstrip().startswith("<think>"):
        return message
    thought, found, said = content.lstrip().removeprefix("<think>").partition("</think>")
    if not found:
        return message
    changed = Message(**message)
    changed["content"] = said.lstrip("\n")
    if thought.strip():
        changed["reasoning_content"] = thought.strip("\n")
    return changed
