"""A message's content as typed parts (`[{type: text, text: …}, {type: tool_use, …}]`) -> text, reasoning, tool calls.

turns.py makes messages of them. The types are those of OpenAI's and Anthropic's APIs, and of open data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dumbo.dataset.row_fault import RowFault, text_of

VALUES = ("text", "value", "content")
"""Where a typed part keeps its text."""
TEXT_PARTS = ("text", "input_text", "output_text")
RESULT_PARTS = ("tool_result", "tool_response")


def kind_of_part(part: Any) -> str | None:
    """The type that a part states; text alone is a text part."""
    if isinstance(part, str):
        return "text"
    return part.get("type") if isinstance(part, dict) else None


def content_of(content: Any, where: str, text_parts: Sequence[str]) -> tuple[str, str, list[Any]]:
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
        kind = kind_of_part(part)
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
