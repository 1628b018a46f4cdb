"""The chat template that is saved: the one trained with, shown by rendering training rows into the ids they had.

formatter=chat     the tokenizer's own template, as it was (model.tokenizer.chat_template may have set it)
formatter=jinja    the formatter's template becomes the tokenizer's; the eos that the formatter added is added in it
others             no template was trained with: the formatter makes the ids again, with the saved tokenizer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from dumbo.errors import ProofFailed
from dumbo.export.rows import Rows, TrainedRow
from dumbo.formatter.chat import Chat
from dumbo.formatter.control_tokens import control_pattern, count_control
from dumbo.formatter.jinja import Jinja
from dumbo.formatter.template_check import without_generation
from dumbo.interfaces import BadRow, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.export.trained import Trained

WITH_EOS = (
    "{{% set whole %}}{text}{{% endset %}}{{% if add_generation_prompt or not messages or messages[-1].role != 'assistant' "
    "or whole.rstrip().endswith(eos_token) %}}{{{{ whole }}}}{{% else %}}{{{{ whole.rstrip() + eos_token }}}}{{% endif %}}"
)
"""A template whose last answer is ended with the eos, as formatter.append_eos does."""


@dataclass(frozen=True)
class Template:
    """What is known of the saved chat template.

    Attributes:
        text: the template, or several by name; None: the tokenizer has none.
        renders: whether the training rows were rendered with it.
        patched: what was changed of the base's own, in words; None: nothing.
        rows: training rows that it was compared on.
        generation_prompt: whether `add_generation_prompt` gives what stood before each answer; None: not compared.
    """

    text: str | dict[str, str] | None
    renders: bool
    patched: str | None
    rows: int = 0
    generation_prompt: bool | None = None

    def told(self, rows: Rows) -> str:
        """For the terminal and the card."""
        if not self.rows:
            why = (
                f"the run's formatter is not here ({rows.lacking})"
                if rows.lacking
                else f"there are only {rows.came_from}"
            )
            what = f"the run's own, not rendered once more: {why}"
        elif self.renders:
            what = (
                f"the saved template renders {self.rows} rows of {rows.came_from} into the ids they were trained with"
            )
        else:
            what = (
                f"the run's formatter, with the saved tokenizer, makes {self.rows} rows of {rows.came_from} into the ids they "
                "were trained with; the saved chat template was not compared"
            )
        lines = [what, *([self.patched] if self.patched else [])]
        if self.generation_prompt is False:
            lines.append("! add_generation_prompt=True does not give what stood before the answers in training")
        return "\n".join(lines)


def template_of(trained: Trained, rows: Rows) -> Template:
    """The template to save, set on the tokenizer."""
    tokenizer: Any = trained.tokenizer
    if isinstance(rows.formatter, Jinja):
        text, ended = _as_chat_template(rows.formatter, tokenizer, rows)
        tokenizer.chat_template = text
        patched = "formatter.template, in place of the base's own"
        return Template(text, True, patched + "; with the eos that formatter.append_eos put behind each row" * ended)
    own = (trained.config.model.get("tokenizer") or {}).get("chat_template")
    changed = "model.tokenizer.chat_template set it for training, in place of the base's own" if own else None
    return Template(tokenizer.chat_template, isinstance(rows.formatter, Chat), changed)


def _as_chat_template(formatter: Jinja, tokenizer: Any, rows: Rows) -> tuple[str, bool]:
    """The formatter's template as transformers takes one, and whether the eos had to be added."""
    text = formatter.text()
    plain = text + "\n" * text.endswith("\n")  # transformers takes a newline at the end away
    if not formatter.append_eos or (rows.whole and not _first_other(tokenizer, rows, plain)):
        return plain, False
    inner = without_generation(text)
    return WITH_EOS.format(text="\n" * inner.startswith("\n") + inner), True


def _first_other(tokenizer: Any, rows: Rows, template: str) -> TrainedRow | None:
    """The first row that a template renders into other ids."""
    before, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        return next((one for one, row in _comparable(rows, tokenizer) if not _same(one, _ids(tokenizer, row))), None)
    finally:
        tokenizer.chat_template = before


def require_same_ids(folder: Path, rows: Rows, template: Template, trained: Trained, *, trusts_code: bool) -> Template:
    """The written tokenizer makes the ids that the run was trained with. Returns the template, with what was compared.

    Raises:
        ProofFailed: it does not, for some row.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusts_code)
    if tokenizer.chat_template != template.text:
        raise ProofFailed("The written chat template is another one than the run's; nothing was written.")
    for one in rows.trained:
        text = trained.tokenizer.decode(list(one.ids))
        mine, written = (tok(text, add_special_tokens=False)["input_ids"] for tok in (trained.tokenizer, tokenizer))
        if mine != written:
            raise ProofFailed(
                f"The written tokenizer splits the text of {one.source} in another way; nothing was written."
            )
    if rows.formatter is None:
        return template
    compared = _comparable(rows, tokenizer)
    prompts = []
    for one, row in compared:
        found = _ids(tokenizer, row) if template.renders else _formatted(rows.formatter, tokenizer, row)
        if not _same(one, found):
            raise ProofFailed(_refusal(one, found, tokenizer))
        begins = tuple(found[: len(one.ids)]) == one.ids
        if template.renders and one.reply is not None and begins:
            prompts.append(_begins(tokenizer, one, row))
    return replace(template, rows=len(compared), generation_prompt=all(prompts) if prompts else None)


def _comparable(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> list[tuple[TrainedRow, Row]]:
    """Rows that a template renders by itself: where the formatter wrote calls as text, or escaped, it changed the row."""
    pattern = control_pattern(tokenizer)
    templated = isinstance(rows.formatter, Chat | Jinja)
    as_text = getattr(rows.formatter, "tool_calls", None) == "as_text"
    return [
        (one, row)
        for one, row in rows.whole
        if not templated
        or not (
            count_control([row.messages, row.tools], pattern)
            or any(
                message.get("reasoning_content") or "<think>" in message.get("content", "") for message in row.messages
            )
            or (
                as_text
                and (row.tools or any("tool_calls" in message or message["role"] == "tool" for message in row.messages))
            )
        )
    ]


def _messages(row: Row) -> list[dict[str, Any]]:
    """As a user of the folder would write them: `train` is a word of dumbo's."""
    return [{key: value for key, value in message.items() if key != "train"} for message in row.messages]


def _ids(tokenizer: Any, row: Row, until: int | None = None) -> list[int]:
    """As a user of the folder would have them; empty where the template refuses. Up to message `until`: a generation prompt."""
    try:
        encoded = tokenizer.apply_chat_template(
            _messages(row)[:until],
            tools=row.tools,
            add_generation_prompt=until is not None,
            tokenize=True,
            return_dict=True,
        )
    except jinja2.TemplateError:
        return []
    return list(encoded["input_ids"])


def _formatted(formatter: Any, tokenizer: Any, row: Row) -> list[int]:
    (example,) = formatter.format([row], tokenizer)
    return [] if isinstance(example, BadRow) else [int(token) for token in example.input_ids]


def _same(one: TrainedRow, found: Sequence[int]) -> bool:
    """Equal; of a row that was cut, a piece of it."""
    ids, whole = (np.asarray(tokens, np.int32) for tokens in (one.ids, found))
    if len(ids) >= len(whole):
        return np.array_equal(ids, whole)
    return any(
        (whole[at : at + len(ids)] == ids).all() for at in np.flatnonzero(whole[: len(whole) - len(ids) + 1] == ids[0])
    )


def _begins(tokenizer: Any, one: TrainedRow, row: Row) -> bool:
    """Whether the generation prompt is what stood before the last answer."""
    last = max(place for place, message in enumerate(row.messages) if message["role"] == "assistant")
    return tuple(_ids(tokenizer, row, until=last)) == one.ids[: one.reply]


def _refusal(one: TrainedRow, found: Sequence[int], tokenizer: Any) -> str:
    pairs = zip(one.ids, found, strict=False)
    place = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one.ids), len(found)))
    shown = [repr(tokenizer.decode(list(ids[max(0, place - 4) : place + 8]))) for ids in (one.ids, found)]
    return (
        f"The saved template does not render {one.source} as it was trained; nothing was written.\n"
        f"  From token {place} on: trained {shown[0]}, rendered {shown[1]}."
    )
