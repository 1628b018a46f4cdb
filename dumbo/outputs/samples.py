"""What the model answers on held-out prompts, before and after: for samples.md, the terminal, exact match."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dumbo.generate import Generation, answers, stop_ids
from dumbo.outputs.printable import printable, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.prepare.store import Split

LONGEST_ANSWER = 256
"""Tokens generated at most, unless told otherwise."""
ROLES = ("assistant", "model", "gpt")
"""What templates write before an answer."""
LONGEST_OPENING = 32
"""Tokens of plain text given to go on from."""


@dataclass(frozen=True)
class Question:
    """A held-out prompt and what the data answers.

    Attributes:
        prompt_ids: the row's tokens up to where the answer begins.
        prompt: the same as text, control tokens kept.
        asked: the last thing said before the answer, without control tokens.
        reference: the data's answer as text.
        reference_ids: the answer's tokens, its end token included.
        source: where the row stands.
    """

    prompt_ids: tuple[int, ...]
    prompt: str
    asked: str
    reference: str
    reference_ids: tuple[int, ...]
    source: str

    def shown(self) -> str:
        """The question on one line."""
        return shortened(self.asked, 200)


def questions(split: Split, tokenizer: PreTrainedTokenizerBase, amount: int) -> list[Question]:
    """The first `amount` rows of a split as questions.

    Plain text is cut after its first tokens. A row whose answer was cut off or divided is no question: see `left_out`.
    """
    plain = _is_plain_text(split)
    found: list[Question] = []
    for document in split.documents.tolist():
        if len(found) >= amount:
            break
        ids = split.store.ids(document).tolist()
        span = _opening(len(ids)) if plain else split.store.reply(document)
        if span is not None and 0 < span[0] < span[1]:
            start, end = span
            found.append(_question(ids[:start], ids[start:end], str(split.store.source(document)), tokenizer))
    return found


def left_out(split: Split) -> int:
    """How many rows of a split have an answer that no document holds whole, after its question (`trainer.too_long`)."""
    if _is_plain_text(split):
        return 0
    asked = [document for document in split.documents.tolist() if split.store.reply(document) is not None]
    return split.rows - len(np.unique(split.store.origin[asked, 0]))


def _is_plain_text(split: Split) -> bool:
    """Whether the formatter marked no answer in any row, before any cut."""
    return not split.store.meta["counts"].get("rows_with_reply")


def _opening(length: int) -> tuple[int, int]:
    start = min(LONGEST_OPENING, length // 2)
    return start, min(length, 3 * start)


def _question(prompt: list[int], reply: list[int], source: str, tokenizer: PreTrainedTokenizerBase) -> Question:
    specials = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return Question(
        tuple(prompt),
        text_of(tokenizer, prompt, plain=False),
        _last_said(prompt, specials, tokenizer),
        text_of(tokenizer, reply).strip(),
        tuple(reply),
        source,
    )


def _last_said(prompt: list[int], specials: set[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands before the header of the answer: the last text between control tokens that is more than a role."""
    stretches: list[list[int]] = [[]]
    for token in prompt:
        if token in specials:
            stretches.append([])
        else:
            stretches[-1].append(token)
    texts = [text for stretch in stretches if (text := text_of(tokenizer, stretch).strip())]
    if len(texts) > 1 and texts[-1].lower() in ROLES:
        texts.pop()
    said = texts[-1] if texts else ""
    return re.sub(r"^(user|human)\s*\n", "", said)


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, plain: bool = True) -> str:
    """Tokens as text; control tokens left out where it is `plain`."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=plain, clean_up_tokenization_spaces=False))


def how_to_answer(
    split: Split, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question], max_new_tokens: int | None
) -> Generation:
    """How long answers may be, and which tokens end them, from the data's own answers."""
    specials = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = [
        question.reference_ids[-1]
        for question in asked
        if question.reference_ids and question.reference_ids[-1] in specials
    ]
    longest = max((len(question.reference_ids) for question in asked), default=64)
    length = max_new_tokens or min(LONGEST_ANSWER, longest + max(4, longest // 4))
    return Generation(max_new_tokens=length, stop_ids=stop_ids(tokenizer, ends))


def ask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question], how: Generation
) -> list[str]:
    """The model's answers, as text."""
    return [
        text_of(tokenizer, reply).strip() for reply in answers(model, tokenizer, [q.prompt_ids for q in asked], how)
    ]


def exact_match(
    find: Callable[[str], str | None], asked: Sequence[Question], replies: Sequence[str]
) -> tuple[int, int]:
    """(answers that are the reference's, questions whose reference has an answer).

    Args:
        find: the answer in a text, see `extractors.py`.
    """
    right = total = 0
    for question, reply in zip(asked, replies, strict=True):
        wanted = find(question.reference)
        if wanted is None:
            continue
        total += 1
        right += int(find(reply) == wanted)
    return right, total


def samples_page(asked: Sequence[Question], before: Sequence[str], after: Sequence[str] | None) -> str:
    """samples.md."""
    lines = ["# Samples", "", "What the model answers on held-out prompts, the likeliest token each time.", ""]
    for number, question in enumerate(asked):
        lines += [f"## {number + 1}. {_inline(question.source)}", "", "Prompt", "", _fenced(question.prompt), ""]
        lines += ["Before training", "", _fenced(before[number]), ""]
        if after is not None:
            lines += ["After training", "", _fenced(after[number]), ""]
        lines += ["In the data", "", _fenced(question.reference), ""]
    return "\n".join(lines)


def _inline(text: str) -> str:
    return printable(text).replace("`", "'")


def _fenced(text: str) -> str:
    """A block that its own text cannot end."""
    safe = printable(text, keep="\n\t")
    longest = max((len(run) for run in re.findall(r"`+", safe)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{safe}\n{fence}"
