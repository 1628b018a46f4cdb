"""`formatter=text`: plain text, loss on every token (pretraining, continued pretraining)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dumbo.formatter.control_tokens import (
    CannotEscape,
    Handling,
    control_pattern,
    count_control,
    first_control,
    with_stand_ins,
)
from dumbo.formatter.encode import Rendered
from dumbo.formatter.examples import examples_of
from dumbo.interfaces import BadRow, Example, Row, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Text:
    """Takes a row's text as one document; of a conversation, its contents one under the other.

    Args:
        append_eos: end each document with the tokenizer's eos, so that the model learns where texts end.
        special_tokens_in_text: as for `formatter=chat`.
    """

    append_eos: bool = True
    special_tokens_in_text: Handling = "error"

    loss_on: ClassVar[str] = "all"

    def format(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Example | BadRow]:
        """The bos that the tokenizer itself would add is added, once."""
        rendered = [self._render(row, tokenizer) for row in rows]
        return examples_of(rendered, tokenizer)

    def _render(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[Source, Rendered, dict[str, int]] | BadRow:
        beside = any(message.get("tool_calls") or message.get("reasoning_content") for message in row.messages)
        if beside or row.tools:
            problem = "it holds tool calls, tools or reasoning, which formatter=text has no form for"
            return BadRow(row.source, problem, "", "Write formatter=chat")
        text = row.text if row.text is not None else "\n".join(message.get("content", "") for message in row.messages)
        pattern = control_pattern(tokenizer)
        counts: dict[str, int] = {}
        stand_ins = None
        if found := count_control(text, pattern):
            counts["control_tokens_in_text"] = found
            if self.special_tokens_in_text == "error":
                return BadRow(
                    row.source,
                    f"its text holds the control token {first_control(text, pattern)}",
                    " ".join(text.split())[:120],
                    "Write formatter.special_tokens_in_text=escape (kept as plain text) or allow",
                )
            if self.special_tokens_in_text == "escape":
                try:
                    text, stand_ins = with_stand_ins(text, pattern)
                except CannotEscape as error:
                    return BadRow(row.source, str(error), " ".join(text.split())[:120])
            else:
                counts["control_tokens_unescaped"] = found
        bos = bos_of(tokenizer)
        if bos and not text.startswith(bos):
            text = bos + text
        whole = Rendered(text + (str(tokenizer.eos_token or "") if self.append_eos else ""), all_tokens=True)
        return row.source, stand_ins.restore(whole) if stand_ins else whole, counts


@functools.lru_cache(maxsize=8)
def bos_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The bos that the tokenizer puts before raw text; empty when it adds none."""
    with_bos = tokenizer("a", add_special_tokens=True)["input_ids"]
    starts = tokenizer.bos_token_id is not None and with_bos[:1] == [tokenizer.bos_token_id]
    return str(tokenizer.bos_token) if starts else ""
