"""A question in the tokens in which a formatter would have trained it, up to where the answer begins.

Nothing is rendered a second way: a row with a made-up answer goes through the formatter itself, and is cut where its
reply begins. That place is not always where the text of the question ends: vocabularies join a space to the word
after it, so that `A: ` is asked as `A:`, with the space in the answer's first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dumbo.errors import UserError
from dumbo.formatter.text import Text
from dumbo.interfaces import BadRow, Formatter, Message, Row, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWERS = ("zqAnswer7", "Xk Other8")
"""Two answers with nothing in common: what both prompts share is the question's."""


def prompt_ids(
    formatter: Formatter, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase
) -> list[int] | None:
    """(T,) token ids of a conversation that waits for its answer; None where the formatter marks no reply.

    Raises:
        UserError: the formatter refuses such a row.
    """
    source = Source("chat.prompt", 1)
    if isinstance(formatter, Text):  # no answer of its own: the text goes on
        text = "\n".join(message.get("content", "") for message in messages)
        return _formatted(replace(formatter, append_eos=False), Row(source, text=text), tokenizer)[0]
    prompts = []
    for answer in ANSWERS:
        row = Row(source, messages=[*messages, Message(role="assistant", content=answer, train=True)])
        ids, reply = _formatted(formatter, row, tokenizer)
        if reply is None:
            return None
        prompts.append(ids[: reply[0]])
    first, second = prompts
    shared = next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(map(len, prompts)))
    return first[:shared]


def _formatted(
    formatter: Formatter, row: Row, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], tuple[int, int] | None]:
    """(token ids, [start, end) of the reply)."""
    (example,) = formatter.format([row], tokenizer)
    if isinstance(example, BadRow):
        raise UserError(f"This cannot be asked as the run's data was: {example.problem}.")
    return [int(token) for token in example.input_ids], example.reply
