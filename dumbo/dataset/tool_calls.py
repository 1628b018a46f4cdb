"""Tools, the calls of them and their results, in the form that chat templates take.

Read as OpenAI, Anthropic and open models write them (https://huggingface.co/docs/transformers/chat_extras); turns.py
puts them into messages.
"""

from __future__ import annotations

from typing import Any

from dumbo.dataset.row_fault import RowFault, decoded, kind_of_value, require_finite
from dumbo.interfaces import Message

ARGUMENTS = ("arguments", "parameters", "input")
"""Where a tool call keeps what it passes: OpenAI, some open models, Anthropic."""


def calls_of(calls: list[Any], where: str, before: list[Message]) -> list[dict[str, Any]]:
    """Calls as templates take them; `before`, the messages so far, tells where their numbering goes on."""
    place = sum(len(earlier.get("tool_calls", [])) for earlier in before)
    return [_call(call, where, place + index) for index, call in enumerate(calls)]


def _call(call: Any, where: str, place: int) -> dict[str, Any]:
    """One tool call in the form templates take: type, id (nine characters, which some templates insist on), function."""
    if isinstance(call, str):
        call = decoded(call, f"a tool call in {where} is")
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise RowFault(f"a tool call in {where} has no name")
    given = [key for key in ARGUMENTS if function.get(key) is not None]
    if len(given) != 1:
        found = f"both '{given[0]}' and '{given[1]}'" if given else f"no arguments ({', '.join(ARGUMENTS)})"
        raise RowFault(f"the tool call '{function['name']}' in {where} has {found}")
    arguments = function[given[0]]
    if isinstance(arguments, str):
        arguments = decoded(arguments, f"the arguments of a tool call in {where} are")
    if not isinstance(arguments, dict):
        raise RowFault(f"the arguments of a tool call in {where} are {kind_of_value(arguments)}, a mapping is wanted")
    require_finite(arguments, f"the arguments of a tool call in {where}")
    identity = call.get("id") or call.get("call_id") or f"call{place:05d}"
    return {"type": "function", "id": str(identity), "function": {"name": function["name"], "arguments": arguments}}


def calls_beside(turn: dict[str, Any], where: str) -> list[Any]:
    """Tool calls beside a message's content: `tool_calls`, or the older `function_call`."""
    calls, single = turn.get("tool_calls") or [], turn.get("function_call")
    if isinstance(calls, str):
        calls = decoded(calls, f"'tool_calls' of {where} is text and") or []
    if not isinstance(calls, list):
        raise RowFault(f"'tool_calls' of {where} is {kind_of_value(calls)}, a list is wanted")
    if calls and single:
        raise RowFault(f"{where} has both 'tool_calls' and 'function_call'")
    return [single] if single else list(calls)


def tool_result(content: str, before: list[Message], call_id: str | None = None) -> Message:
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


def tools_of(tools: Any) -> list[dict[str, Any]] | None:
    """The list of tools a conversation may call, as templates take it; JSON text is decoded; an empty list is None."""
    if isinstance(tools, str):
        if not tools.strip():
            return None
        tools = decoded(tools, "'tools' is")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowFault("'tools' must be a list of mappings")
    require_finite(tools, "'tools'")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools] or None
