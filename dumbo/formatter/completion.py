"""`formatter=completion`: prompt and answer as they are, no template, loss on the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dumbo.formatter.control_tokens import (
    CannotEscape,
    Handling,
    control_pattern,
    count_control,
    first_control,
    with_stand_ins,
)
from dumbo.formatter.conversation import RowError, start_of
from dumbo.formatter.encode import Rendered
from dumbo.formatter.examples import examples_of
from dumbo.formatter.text import bos_of
from dumbo.interfaces import BadRow, Example, Row, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Joins the texts before the last answer and the answer.

    Args:
        separator: between the texts of a row.
        loss_on: completion (the answer and the eos after it), or all.
        append_eos: end the row with the tokenizer's eos.
        special_tokens_in_text: as for `formatter=chat`.
    """

    separator: str = ""
    loss_on: Literal["completion", "all"] = "completion"
    append_eos: bool = True
    special_tokens_in_text: Handling = "error"

    def format(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Example | BadRow]:
        rendered: list[tuple[Source, Rendered, dict[str, int]] | BadRow] = []
        for row in rows:
            try:
                rendered.append((row.source, *self._render(row, tokenizer)))
            except (RowError, CannotEscape) as error:
                rendered.append(BadRow(row.source, str(error), start_of(row), getattr(error, "remedy", "")))
        return examples_of(rendered, tokenizer)

    def _render(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[Rendered, dict[str, int]]:
        if not row.messages or row.messages[-1]["role"] != "assistant":
            raise RowError("there is no answer at the end of this row", "Plain text: formatter=text")
        if any(message.get("tool_calls") or message["role"] == "tool" for message in row.messages):
            raise RowError("it holds tool calls, which formatter=completion has no form for", "Write formatter=chat")
        if row.tools or any(message.get("reasoning_content") for message in row.messages):
            what = "a list of tools" if row.tools else "reasoning"
            raise RowError(f"it holds {what}, which formatter=completion has no form for", "Write formatter=chat")
        parts = [message.get("content", "") for message in row.messages]
        pattern = control_pattern(tokenizer)
        counts: dict[str, int] = {}
        stand_ins = None
        if found := count_control(parts, pattern):
            counts["control_tokens_in_text"] = found
            if self.special_tokens_in_text == "error":
                raise RowError(
                    f"its text holds the control token {first_control(parts, pattern)}",
                    "Write formatter.special_tokens_in_text=escape (kept as plain text) or allow",
                )
            if self.special_tokens_in_text == "escape":
                parts, stand_ins = with_stand_ins(parts, pattern)
            else:
                counts["control_tokens_unescaped"] = found
        prompt = self.separator.join([*parts[:-1], ""])
        bos = bos_of(tokenizer)
        if bos and not prompt.startswith(bos):
            prompt = bos + prompt
        text = prompt + parts[-1] + (str(tokenizer.eos_token or "") if self.append_eos else "")
        span = (len(prompt), len(text))
        whole = Rendered(text, (span,), span, all_tokens=self.loss_on == "all")
        return (stand_ins.restore(whole) if stand_ins else whole), counts
