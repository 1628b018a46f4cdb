"""Lists of turns -> messages in the one form chat templates take (keys absent rather than null).

columns.py finds the turns in a row. Who speaks is told here; content in parts is parts.py's, tools are tool_calls.py's.
"""

from __future__ import annotations

from typing import Any

from dumbo.dataset.parts import RESULT_PARTS, TEXT_PARTS, VALUES, content_of, kind_of_part
from dumbo.dataset.row_fault import RowFault, decoded, shown, text_of
from dumbo.dataset.tool_calls import calls_beside, calls_of, tool_result
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

MEDIA = ("image", "images", "audio", "audios", "video", "videos")
"""Keys and columns that belong to what is said, and are not text."""


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
            given = decoded(value, f"the function_call in {where} is")
            calls = calls_of(given if isinstance(given, list) else [given], where, messages)
            messages.append(Message(role="assistant", content="", tool_calls=calls))
        elif speaker == "tool":
            messages.append(tool_result(value, messages))
        else:
            messages.append(Message(role=speaker, content=value))
        if reasoning := _reasoning(turn, where):
            if speaker not in ("assistant", "function_call"):
                raise RowFault(f"{where} ({turn['from']}) holds reasoning, which only an assistant's turn has")
            messages[-1]["reasoning_content"] = reasoning
        _copy_train(turn, messages[-1], where)
    return messages


def messages_of(turns: Any) -> list[Message]:
    """`[{role, content, …}, …]` -> messages. Content may be text, null beside tool calls, or typed parts."""
    if isinstance(turns, str):
        turns = decoded(turns, "'messages' is text and")
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
    text, reasoning, calls = content_of(content, where, TEXT_PARTS + (RESULT_PARTS if role == "tool" else ()))
    if content is None and role in ("system", "tool"):
        raise RowFault(f"{where} ({turn['role']}) has no content")
    beside = calls_beside(turn, where)
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
        message = tool_result(text, before, _text_or_none(turn.get("tool_call_id")))
    else:
        message = Message(role=role, content=text)
    if turn.get("name"):
        message["name"] = text_of(turn["name"], f"name of {where}")
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls_of(calls, where, before)
    if role in ("user", "assistant") and not text.strip() and not calls:
        raise RowFault(f"{where} ({role}) is empty", "Fill it in")
    _copy_train(turn, message, where)
    return [message]


def _with_results(turn: dict[str, Any], parts: list[Any], where: str, before: list[Message]) -> list[Message]:
    """A turn with parts of type tool_result (as Anthropic writes them): messages of tools, then the user's words."""
    messages: list[Message] = []
    words: list[Any] = []
    for part in parts:
        if kind_of_part(part) not in RESULT_PARTS:
            words.append(part)
            continue
        if words:
            raise RowFault(f"{where} says something before the result of a tool; results come first")
        inner = next((part[key] for key in VALUES if part.get(key) is not None), None)
        if inner is None:
            raise RowFault(f"a tool_result in {where} has no content")
        text, reasoning, calls = content_of(inner, where, TEXT_PARTS)
        if reasoning or calls:
            raise RowFault(f"a tool_result in {where} holds more than text")
        call_id = _text_or_none(part.get("tool_use_id") or part.get("tool_call_id"))
        messages.append(tool_result(text, [*before, *messages], call_id))
    if words and turn["role"] != "user":
        raise RowFault(f"{where} ({turn['role']}) holds more than results of tools")
    if words:
        messages += _turn({**turn, "content": words}, where, [*before, *messages])
    return messages


def _is_result(part: Any, role: str) -> bool:
    """Whether a part is a tool's result to be tied to its call; in a tool's own message only one that names the call."""
    return kind_of_part(part) in RESULT_PARTS and (role == "user" or bool(part.get("tool_use_id")))


def _text_or_none(value: Any) -> str | None:
    return str(value) if value not in (None, "") else None


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
            raise RowFault(f"'{key}' of {where} is {shown(value)}; true or false is wanted")
    if len({bool(value) for value in given.values()}) > 1:
        raise RowFault(f"'train' and 'weight' of {where} contradict each other")
    if given:
        message["train"] = bool(next(iter(given.values())))
