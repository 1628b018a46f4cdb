"""What a chat template renders of a conversation, found out once by rendering short ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from dumbo.formatter.loss_mask import MaskError, Render
from dumbo.interfaces import Message

TEMPLATE_ERRORS = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip
"""What a template raises when a row is not of the form it knows."""


class Safe:
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


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a template renders of a conversation; what it does not render, it drops without a word."""

    tool_calls: bool
    tools: bool
    reasoning: bool
    system: bool


def abilities_of(render: Render) -> Abilities:
    """Of a template that raises a MaskError for what it does not take (`Safe`)."""
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
