"""Conversations -> examples, for any template: what `formatter=chat` and `formatter=jinja` share.

row -> control tokens in its text? -> render -> spans of the turns -> tokenise the batch -> labels
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jinja2

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
from dumbo.formatter.loss_mask import MaskError, Profile, Render, assistant_spans, profile_of
from dumbo.formatter.tool_text import as_text
from dumbo.interfaces import BadRow, Example, Message, Row, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LossOn = Literal["assistant", "last", "all", "field"]

TEMPLATE_ERRORS = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip
"""What a template raises when a row is not of the form it knows."""


class RowError(ValueError):
    """Why one row cannot be trained on, and the remedy."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a template renders of a conversation; what it does not render, it drops without a word."""

    tool_calls: bool
    tools: bool
    reasoning: bool
    system: bool


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

    @classmethod
    def of(cls, render: Render, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Conversations:
        """Probes the template first. Raises MaskError when it does not render a plain conversation."""
        safe = _Safe(render)
        return cls(safe, tokenizer, profile_of(safe, control_pattern(tokenizer)), _abilities(safe), **options)

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
        messages, tools = self._spelled(row)
        messages, tools, stand_ins, counts = self._control_tokens(messages, tools)
        plain = self.render(messages, tools=tools, add_generation_prompt=False)
        _require_said(messages, plain)
        spans = assistant_spans(self.render, messages, tools, plain, self.profile)
        self._require_rendered(messages, plain, spans, counts)
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
        return stand_ins.restore(whole), counts

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


class _Safe:
    """A template whose refusal of a row is a MaskError, whatever it raised."""

    def __init__(self, render: Render) -> None:
        self._render = render

    def __call__(
        self, messages: Sequence[Message], *, tools: list[dict[str, Any]] | None, add_generation_prompt: bool
    ) -> str:
        try:
            return self._render(messages, tools=tools, add_generation_prompt=add_generation_prompt)
        except TEMPLATE_ERRORS as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise MaskError(f"the chat template refuses it: {first}") from error


def _abilities(render: Render) -> Abilities:
    user = Message(role="user", content="zqUser7")
    answer = Message(role="assistant", content="zqText7")
    function = {"name": "zq_tool7", "arguments": {"zq_key7": "zq_value7"}}
    call = {"type": "function", "id": "zqcall007", "function": function}
    calling = Message(role="assistant", content="", tool_calls=[call])
    result = Message(role="tool", content="zqResult7", name="zq_tool7", tool_call_id="zqcall007")
    tool = {
        "type": "function",
        "function": {"name": "zq_listed7", "description": "d", "parameters": {"type": "object", "properties": {}}},
    }
    thinking = Message(role="assistant", content="zqText7", reasoning_content="zqReason7")
    system = Message(role="system", content="zqSystem7")

    def shows(messages: list[Message], *needles: str, tools: list[dict[str, Any]] | None = None) -> bool:
        try:
            text = render(messages, tools=tools, add_generation_prompt=False)
        except MaskError:
            return False
        return all(needle in text for needle in needles)

    return Abilities(
        tool_calls=shows([user, calling, result, answer], "zq_tool7", "zq_value7", "zqResult7"),
        tools=shows([user, answer], "zq_listed7", tools=[tool]) or shows([user], "zq_listed7", tools=[tool]),
        reasoning=shows([user, thinking], "zqReason7"),
        system=shows([system, user, answer], "zqSystem7"),
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


def start_of(row: Row, width: int = 120) -> str:
    """The beginning of a row, on one line, for error messages."""
    if row.text is not None:
        text = row.text
    else:
        text = json.dumps(row.messages, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
