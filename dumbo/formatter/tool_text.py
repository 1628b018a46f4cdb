"""Tool calls and reasoning written out as text, for chat templates that know neither (`formatter.tool_calls=as_text`).

SmolLM2's template drops them without a word. As text they keep the form most models know:

    <tool_call>                      <tool_response>            <think>
    {"name": …, "arguments": …}      what the tool said         reasoning
    </tool_call>                     </tool_response>           </think>
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dumbo.interfaces import Message


def as_text(
    messages: Sequence[Message], tools: list[dict[str, Any]] | None, *, reasoning: bool, system: bool
) -> list[Message]:
    """The conversation with calls, results, tool lists (and reasoning, when `reasoning`) in its texts.

    Results become the user's words, and so does the system message where a template has none (`system` false);
    neighbours of one role become one message, since some templates insist on turns.
    """
    plain: list[Message] = []
    if tools:
        plain.append(Message(role="system" if system else "user", content=_tool_list(tools)))
    for message in messages:
        role, content = message["role"], message.get("content", "")
        role = "user" if role == "system" and not system else role
        if role == "assistant":
            parts = []
            if reasoning and message.get("reasoning_content"):
                parts.append(f"<think>\n{message['reasoning_content']}\n</think>\n")
            parts += [content] if content else []
            parts += [_call(call) for call in message.get("tool_calls", [])]
            changed = Message(role="assistant", content="\n".join(parts))
            if not reasoning and message.get("reasoning_content"):
                changed["reasoning_content"] = message["reasoning_content"]
        elif role == "tool":
            changed = Message(role="user", content=f"<tool_response>\n{content}\n</tool_response>")
        else:
            changed = Message(role=role, content=content)
        if "train" in message:
            changed["train"] = message["train"]
        plain.append(changed)
    return _merged(plain)


def _tool_list(tools: list[dict[str, Any]]) -> str:
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        f"You can call these tools:\n<tools>\n{listed}\n</tools>\n"
        'Call one with <tool_call>\n{"name": …, "arguments": …}\n</tool_call>'
    )


def _call(call: dict[str, Any]) -> str:
    function = call["function"]
    return f"<tool_call>\n{json.dumps({'name': function['name'], 'arguments': function['arguments']}, ensure_ascii=False)}\n</tool_call>"


def _merged(messages: list[Message]) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else None
        if last is not None and last["role"] == message["role"] and message["role"] in ("user", "system"):
            last["content"] = f"{last['content']}\n\n{message['content']}"
        else:
            merged.append(message)
    return merged
