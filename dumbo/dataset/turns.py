"""Lists of turns -> messages in the one form chat templates take (keys absent rather than null)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dumbo.dataset import strict_json
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

ARGUMENTS = ("arguments", "parameters", "input")
"""Where a tool call keeps what it passes: OpenAI, some open models, Anthropic."""
VALUES = ("text", "value", "content")
"""Where a typed part keeps its text."""
TEXT_PARTS = ("text", "input_text", "output_text")
RESULT_PARTS = ("tool_result", "tool_response")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
"""Keys and columns that belong to what is said, and are not text."""


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
        where = f"turn {number}"
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            raise RowFault(f"{where} lacks 'from' or 'value'")
        speaker = SPEAKERS.get(str(turn["from"]).lower())
        if speaker is None:
            raise RowFault(
                f"{where} is from '{turn['from']}', which is no known speaker.{did_you_mean(str(turn['from']), SPEAKERS)}"
            )
        _require_no_media(turn, where)
        value = text_of(turn["value"], f"value of {where}", empty=speaker in ("tool", "system"))
        if speaker == "function_call":
            decoded = _decoded(value, f"the function_call in {where} is")
            calls = _calls(decoded if isinstance(decoded, list) else [decoded], where, messages)
            messages.append(Message(role="assistant", content="", tool_calls=calls))
        elif speaker == "tool":
            messages.append(_tool_result(value, messages))
        else:
            messages.append(Message(role=speaker, content=value))
        if reasoning := _reasoning(turn, where):
            if speaker not in ("assistant", "function_call"):
                raise RowFault(f"{where} ({turn['from']}) holds reasoning, which only an assistant's turn has")
            messages[-1]["reasoning_content"] = reasoning
        _copy_train(turn, messages[-1], where)
    return messages


def _decoded(text: str, what: str) -> Any:
    """The value of a JSON text inside a row; a RowFault that begins with `what` where it is none."""
    try:
        return strict_json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowFault(f"{what} not JSON ({strict_json.fault_in(error)})") from error


def _calls(calls: list[Any], where: str, before: list[Message]) -> list[dict[str, Any]]:
    place = sum(len(earlier.get("tool_calls", [])) for earlier in before)
    return [_call(call, where, place + index) for index, call in enumerate(calls)]


def _call(call: Any, where: str, place: int) -> dict[str, Any]:
    """One tool call in the form templates take: type, id (nine characters, which some templates insist on), function."""
    if isinstance(call, str):
        call = _decoded(call, f"a tool call in {where} is")
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise RowFault(f"a tool call in {where} has no name")
    given = [key for key in ARGUMENTS if function.get(key) is not None]
    if len(given) != 1:
        found = f"both '{given[0]}' and '{given[1]}'" if given else f"no arguments ({', '.join(ARGUMENTS)})"
        raise RowFault(f"the tool call '{function['name']}' in {where} has {found}")
    arguments = function[given[0]]
    if isinstance(arguments, str):
        arguments = _decoded(arguments, f"the arguments of a tool call in {where} are")
    if not isinstance(arguments, dict):
        raise RowFault(f"the arguments of a tool call in {where} are {_kind(arguments)}, a mapping is wanted")
    _require_finite(arguments, f"the arguments of a tool call in {where}")
    identity = call.get("id") or call.get("call_id") or f"call{place:05d}"
    return {"type": "function", "id": str(identity), "function": {"name": function["name"], "arguments": arguments}}


def _require_finite(value: Any, what: str) -> None:
    """NaN and Infinity are read where JSON holds them, and would be written out as words that no JSON reader takes."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise RowFault(f"{what} hold NaN or Infinity, which are no JSON") from error


def _tool_result(content: str, before: list[Message], call_id: str | None = None) -> Message:
    """A tool's answer, tied to the call it names, or to the first call before it that has no answer yet."""
    message = Message(role="tool", content=content)
    calls = [call for earlier in before for call in earlier.get("tool_calls", [])]
    answered = [earlier.get("tool_call_id") for earlier in before if earlier["role"] == "tool"]
    named = [call for call in calls if call_id is not None and call["id"] == call_id]
    open_calls = named[-1:] or [call for call in calls if call["id"] not in answered]
    if open_calls:
        message["tool_call_id"], message["name"] = open_calls[0]["id"], open_calls[0]["function"]["name"]
    if call_id is not None:
        message["tool_call_id"] = call_id
    return message


def messages_of(turns: Any) -> list[Message]:
    """`[{role, content, …}, …]` -> messages. Content may be text, null beside tool calls, or typed parts."""
    if isinstance(turns, str):
        turns = _decoded(turns, "'messages' is text and")
    if not isinstance(turns, list) or not turns:
        raise RowFault("'messages' must be a list of messages, and not empty")
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        messages += _turn(turn, f"message {number}", messages)
    return messages


def _turn(turn: Any, where: str, before: list[Message]) -> list[Message]:
    """The messages of one turn: one, but for a user's turn that brings results of tools."""
    if not isinstance(turn, dict) or "role" not in turn:
        raise RowFault(f"{where} has no role")
    role = ROLES.get(str(turn["role"]))
    if role is None:
        raise RowFault(f"{where} has the unknown role '{turn['role']}'.{did_you_mean(str(turn['role']), ROLES)}")
    _require_no_media(turn, where)
    content = turn.get("content")
    if role in ("user", "tool") and isinstance(content, list) and any(_is_result(part, role) for part in content):
        return _with_results(turn, content, where, before)
    text, reasoning, calls = _content(content, where, TEXT_PARTS + (RESULT_PARTS if role == "tool" else ()))
    if content is None and role in ("system", "tool"):
        raise RowFault(f"{where} ({turn['role']}) has no content")
    beside = _calls_beside(turn, where)
    if calls and beside:
        raise RowFault(f"{where} has tool calls both in its content and beside it")
    calls += beside
    own_reasoning = _reasoning(turn, where)
    if reasoning and own_reasoning and reasoning != own_reasoning:
        raise RowFault(f"{where} has reasoning both in its content and beside it")
    reasoning = reasoning or own_reasoning
    if role != "assistant" and (calls or reasoning):
        raise RowFault(
            f"{where} ({turn['role']}) holds {'tool calls' if calls else 'reasoning'}, which only an assistant's turn has"
        )
    if role == "tool":
        message = _tool_result(text, before, _text_or_none(turn.get("tool_call_id")))
    else:
        message = Message(role=role, content=text)
    if turn.get("name"):
        message["name"] = text_of(turn["name"], f"name of {where}")
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = _calls(calls, where, before)
    if role in ("user", "assistant") and not text.strip() and not calls:
        raise RowFault(f"{where} ({role}) is empty", "Fill it in")
    _copy_train(turn, message, where)
    return [message]


def _with_results(turn: dict[str, Any], parts: list[Any], where: str, before: list[Message]) -> list[Message]:
    """A turn with parts of type tool_result (as Anthropic writes them): messages of tools, then the user's words."""
    messages: list[Message] = []
    words: list[Any] = []
    for part in parts:
        if _kind_of_part(part) not in RESULT_PARTS:
            words.append(part)
            continue
        if words:
            raise RowFault(f"{where} says something before the result of a tool; results come first")
        inner = next((part[key] for key in VALUES if part.get(key) is not None), None)
        if inner is None:
            raise RowFault(f"a tool_result in {where} has no content")
        text, reasoning, calls = _content(inner, where, TEXT_PARTS)
        if reasoning or calls:
            raise RowFault(f"a tool_result in {where} holds more than text")
        call_id = _text_or_none(part.get("tool_use_id") or part.get("tool_call_id"))
        messages.append(_tool_result(text, [*before, *messages], call_id))
    if words and turn["role"] != "user":
        raise RowFault(f"{where} ({turn['role']}) holds more than results of tools")
    if words:
        messages += _turn({**turn, "content": words}, where, [*before, *messages])
    return messages


def _is_result(part: Any, role: str) -> bool:
    """Whether a part is a tool's result to be tied to its call; in a tool's own message only one that names the call."""
    return _kind_of_part(part) in RESULT_PARTS and (role == "user" or bool(part.get("tool_use_id")))


def _text_or_none(value: Any) -> str | None:
    return str(value) if value not in (None, "") else None


def _calls_beside(turn: dict[str, Any], where: str) -> list[Any]:
    """Tool calls beside a message's content: `tool_calls`, or the older `function_call`."""
    calls, single = turn.get("tool_calls") or [], turn.get("function_call")
    if isinstance(calls, str):
        calls = _decoded(calls, f"'tool_calls' of {where} is text and") or []
    if not isinstance(calls, list):
        raise RowFault(f"'tool_calls' of {where} is {_kind(calls)}, a list is wanted")
    if calls and single:
        raise RowFault(f"{where} has both 'tool_calls' and 'function_call'")
    return [single] if single else list(calls)


def _reasoning(turn: dict[str, Any], where: str) -> str:
    found = next((turn[key] for key in ("reasoning_content", "reasoning", "thinking") if turn.get(key)), None)
    return text_of(found, f"reasoning of {where}") if found is not None else ""


def _require_no_media(turn: dict[str, Any], where: str) -> None:
    if found := next((key for key in MEDIA if turn.get(key)), None):
        raise RowFault(f"{where} holds '{found}', and this trains on text alone")


def _copy_train(turn: dict[str, Any], message: Message, where: str) -> None:
    """A turn's `train` (or `weight`, as some write it): true, false, 1 or 0."""
    given = {key: turn[key] for key in ("train", "weight") if turn.get(key) is not None}
    for key, value in given.items():
        if value not in (True, False):
            raise RowFault(f"'{key}' of {where} is {_shown(value)}; true or false is wanted")
    if len({bool(value) for value in given.values()}) > 1:
        raise RowFault(f"'train' and 'weight' of {where} contradict each other")
    if given:
        message["train"] = bool(next(iter(given.values())))


def _kind_of_part(part: Any) -> str | None:
    if isinstance(part, str):
        return "text"
    return part.get("type") if isinstance(part, dict) else None


def _content(content: Any, where: str, text_parts: Sequence[str]) -> tuple[str, str, list[Any]]:
    """(text, reasoning, tool calls) of a message's content.

    Templates render reasoning, then text, then calls: parts in another order would be moved, and are refused.
    """
    if content is None:
        return "", "", []
    if not isinstance(content, list):
        return text_of(content, f"content of {where}", empty=True), "", []
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[Any] = []
    for part in content:
        kind = _kind_of_part(part)
        value = part if isinstance(part, str) else None
        if isinstance(part, dict):
            value = next((part[key] for key in (*VALUES, "thinking", "tool_call") if part.get(key) is not None), None)
        if kind in text_parts:
            text = _part_text(value, f"a text part of {where}")
            if text.strip() and calls:
                raise RowFault(f"{where} goes on with text after a tool call", "Make it two messages")
            texts.append(text)
        elif kind in ("reasoning", "thinking"):
            text = _part_text(value, f"a reasoning part of {where}")
            if text.strip() and (calls or "".join(texts).strip()):
                raise RowFault(f"{where} goes on with reasoning after its text or a tool call", "Make it two messages")
            reasoning.append(text)
        elif kind in ("tool_call", "tool_use", "function_call"):
            calls.append(value if value is not None else part)
        else:
            raise RowFault(f"{where} has a part of type '{kind}'; known: text, reasoning, tool_call, tool_result")
    return "".join(texts), "\n".join(reasoning), calls


def _part_text(value: Any, name: str) -> str:
    """The text of a part, which may be empty but not missing."""
    if value is None:
        raise RowFault(f"{name} has no text")
    return text_of(value, name, empty=True)


def tools_of(tools: Any) -> list[dict[str, Any]] | None:
    """The list of tools a conversation may call, as templates take it; JSON text is decoded; an empty list is None."""
    if isinstance(tools, str):
        if not tools.strip():
            return None
        tools = _decoded(tools, "'tools' is")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowFault("'tools' must be a list of mappings")
    _require_finite(tools, "'tools'")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools] or None
