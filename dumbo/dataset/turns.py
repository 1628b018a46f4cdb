"""Lists of turns -> messages in the one form chat templates take (keys absent rather than null)."""

from __future__ import annotations

import json
from typing import Any

from dumbo.interfaces import Message
from dumbo.suggest import did_you_mean

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "function_call": "function_call", "tool_call": "function_call",
    "observation": "tool", "tool": "tool", "function_response": "tool", "tool_response": "tool",
}  # fmt: skip
"""Who speaks in sharegpt data, and as which role."""


class RowFault(ValueError):
    """What is wrong with one raw row."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.remedy = remedy


def text_of(value: Any, name: str, *, empty: bool = False) -> str:
    """A text value; a RowFault when it is of another type, or empty where it must not be."""
    if value is None and empty:
        return ""
    if not isinstance(value, str):
        raise RowFault(f"'{name}' is {_kind(value)}, text is wanted")
    if not empty and not value.strip():
        raise RowFault(f"'{name}' is empty", "Fill it in")
    return value


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value}")


def _shown(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else _kind(value)


def sharegpt_messages(turns: Any) -> list[Message]:
    """`[{from, value}, …]` (also `{role, content}`) -> messages; a function_call becomes an assistant's tool call."""
    if not isinstance(turns, list) or not turns:
        raise RowFault("'conversations' must be a list of turns, and not empty")
    if all(isinstance(turn, dict) and "role" in turn for turn in turns):
        return messages_of(turns)
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            raise RowFault(f"turn {number} lacks 'from' or 'value'")
        speaker = SPEAKERS.get(str(turn["from"]).lower())
        if speaker is None:
            raise RowFault(
                f"turn {number} is from '{turn['from']}', which is no known speaker.{did_you_mean(str(turn['from']), SPEAKERS)}"
            )
        value = text_of(turn["value"], f"value of turn {number}", empty=speaker in ("tool", "system"))
        if speaker == "function_call":
            messages.append(Message(role="assistant", content="", tool_calls=_calls(value, number, len(messages))))
        elif speaker == "tool":
            messages.append(_tool_result(value, messages))
        else:
            message = Message(role=speaker, content=value)
            messages.append(message)
        _copy_train(turn, messages[-1], f"turn {number}")
    return messages


def _calls(value: str, number: int, place: int) -> list[dict[str, Any]]:
    try:
        decoded = json.loads(value)
    except json.JSONDecodeError as error:
        raise RowFault(f"the function_call in turn {number} is not JSON ({error.msg} at {error.pos})") from error
    return [
        _call(call, f"turn {number}", place + index)
        for index, call in enumerate(decoded if isinstance(decoded, list) else [decoded])
    ]


def _call(call: Any, where: str, place: int) -> dict[str, Any]:
    """One tool call in the form templates take: type, id (nine characters, which some templates insist on), function."""
    if isinstance(call, str):
        try:
            call = json.loads(call)
        except json.JSONDecodeError as error:
            raise RowFault(f"a tool call in {where} is not JSON ({error.msg} at {error.pos})") from error
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowFault(f"a tool call in {where} has no name")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            raise RowFault(
                f"the arguments of a tool call in {where} are not JSON ({error.msg} at {error.pos})"
            ) from error
    identity = call.get("id") or f"call{place:05d}"
    return {"type": "function", "id": str(identity), "function": {"name": function["name"], "arguments": arguments}}


def _tool_result(content: str, before: list[Message]) -> Message:
    """A tool's answer, tied to the last call before it that has none."""
    message = Message(role="tool", content=content)
    pending = [call for earlier in before for call in earlier.get("tool_calls", [])]
    answered = sum(earlier["role"] == "tool" for earlier in before)
    if answered < len(pending):
        call = pending[answered]
        message["tool_call_id"], message["name"] = call["id"], call["function"]["name"]
    return message


def messages_of(turns: Any) -> list[Message]:
    """`[{role, content, …}, …]` -> messages. Content may be text, null beside tool calls, or typed parts."""
    if isinstance(turns, str):
        try:
            turns = json.loads(turns)
        except json.JSONDecodeError as error:
            raise RowFault(f"'messages' is text and not JSON ({error.msg} at {error.pos})") from error
    if not isinstance(turns, list) or not turns:
        raise RowFault("'messages' must be a list of messages, and not empty")
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        messages.append(_message(turn, number, messages))
    return messages


def _message(turn: Any, number: int, before: list[Message]) -> Message:
    if not isinstance(turn, dict) or "role" not in turn:
        raise RowFault(f"message {number} has no role")
    role = ROLES.get(str(turn["role"]))
    if role is None:
        raise RowFault(
            f"message {number} has the unknown role '{turn['role']}'.{did_you_mean(str(turn['role']), ROLES)}"
        )
    content, reasoning, calls = _content(turn.get("content"), number)
    calls += list(turn.get("tool_calls") or [])
    reasoning = reasoning or next(
        (turn[key] for key in ("reasoning_content", "reasoning", "thinking") if turn.get(key)), ""
    )
    if role == "tool":
        message = _tool_result(content, before)
        for key in ("tool_call_id", "name"):
            if turn.get(key):
                message[key] = str(turn[key])
        _copy_train(turn, message, f"message {number}")
        return message
    message = Message(role=role, content=content)
    if role == "assistant":
        if reasoning:
            message["reasoning_content"] = text_of(reasoning, f"reasoning of message {number}")
        if calls:
            place = sum(len(earlier.get("tool_calls", [])) for earlier in before)
            message["tool_calls"] = [
                _call(call, f"message {number}", place + index) for index, call in enumerate(calls)
            ]
        if not content.strip() and not calls:
            raise RowFault(f"message {number} (assistant) is empty", "Fill it in")
    elif role == "user" and not content.strip():
        raise RowFault(f"message {number} (user) is empty", "Fill it in")
    _copy_train(turn, message, f"message {number}")
    return message


def _copy_train(turn: dict[str, Any], message: Message, where: str) -> None:
    """A turn's `train` (or `weight`, as some write it): true, false, 1 or 0."""
    train = turn.get("train", turn.get("weight"))
    if train is None:
        return
    if train not in (True, False):
        raise RowFault(f"'train' of {where} is {_shown(train)}; true or false is wanted")
    message["train"] = bool(train)


def _content(content: Any, number: int) -> tuple[str, str, list[Any]]:
    """(text, reasoning, tool calls) of a message's content."""
    if content is None:
        return "", "", []
    if not isinstance(content, list):
        return text_of(content, f"content of message {number}", empty=True), "", []
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[Any] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else "text" if isinstance(part, str) else None
        value = (
            part
            if isinstance(part, str)
            else next(
                (part[k] for k in ("text", "value", "content", "thinking", "tool_call") if part.get(k) is not None),
                None,
            )
            if isinstance(part, dict)
            else None
        )
        if kind in ("text", "input_text", "output_text", "tool_result", "tool_response"):
            texts.append(text_of(value, f"a text part of message {number}", empty=True))
        elif kind in ("reasoning", "thinking"):
            reasoning.append(text_of(value, f"a reasoning part of message {number}", empty=True))
        elif kind in ("tool_call", "tool_use", "function_call"):
            calls.append(value if value is not None else part)
        else:
            raise RowFault(f"message {number} has a part of type '{kind}'; known: text, reasoning, tool_call")
    return "".join(texts), "\n".join(reasoning), calls


def tools_of(tools: Any) -> list[dict[str, Any]] | None:
    """The list of tools a conversation may call, as templates take it; JSON text is decoded; an empty list is None."""
    if isinstance(tools, str):
        if not tools.strip():
            return None
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise RowFault(f"'tools' is not JSON ({error.msg} at {error.pos})") from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowFault("'tools' must be a list of mappings")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools] or None
