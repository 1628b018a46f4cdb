"""`formatter=chat`: the tokenizer's own chat template, loss on what the assistant says."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dumbo.errors import UserError
from dumbo.formatter.control_tokens import Handling
from dumbo.formatter.conversation import Conversations, LossOn
from dumbo.formatter.forms import Template
from dumbo.formatter.loss_mask import MaskError, Render
from dumbo.interfaces import BadRow, Example, Message, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Renders with `tokenizer.chat_template` (set another with `model.tokenizer.chat_template`).

    Args:
        loss_on: assistant: every assistant turn, its end token included; last: only the last one; all: every
            token; field: the assistant messages that say `train: true`.
        special_tokens_in_text: a control token inside a row's own text: error (a bad row), escape (kept as
            plain text), allow (becomes the control token).
        tool_calls: native, or as_text for templates that leave tool calls and reasoning out.
    """

    loss_on: LossOn = "assistant"
    special_tokens_in_text: Handling = "error"
    tool_calls: Literal["native", "as_text"] = "native"

    def format(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Example | BadRow]:
        """Formats a batch.

        Raises:
            UserError: the tokenizer has no chat template, or it does not render a plain conversation.
        """
        return _conversations(self, tokenizer, str(tokenizer.chat_template), str(tokenizer.special_tokens_map)).format(
            rows
        )


@functools.lru_cache(maxsize=4)
def _conversations(chat: Chat, tokenizer: PreTrainedTokenizerBase, template: str, specials: str) -> Conversations:
    """For one tokenizer, as long as its template and its special tokens stay."""
    if not tokenizer.chat_template:
        raise UserError(
            "The tokenizer has no chat template.\n"
            "  Write model.tokenizer.chat_template=chatml (or a file), or formatter=completion for prompt and answer as they are."
        )

    try:
        render, known = template_of(tokenizer)
        return Conversations.of(
            render,
            tokenizer,
            known,
            loss_on=chat.loss_on,
            special_tokens_in_text=chat.special_tokens_in_text,
            tool_calls=chat.tool_calls,
        )
    except MaskError as error:
        raise UserError(f"The tokenizer's chat template cannot be used for training: {error}.") from error


def template_of(tokenizer: PreTrainedTokenizerBase) -> tuple[Render, Template]:
    """The tokenizer's chat template: what renders with it, and itself.

    `apply_chat_template` drops keys without a value, renames reasoning and makes inert copies of whatever a message holds,
    which takes longer than the template. For messages that hold a role and a text, all of that changes nothing: they
    go to the template at once, the same compiled one. Private in transformers, within the versions in pyproject.toml:
    _compile_jinja_template.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    apply: Any = tokenizer.apply_chat_template
    text = tokenizer.get_chat_template()
    compiled = _compile_jinja_template(text)
    given = {**tokenizer.special_tokens_map, "tools": None, "documents": None}
    constant = {**dict(compiled.globals), **given}

    def render(messages: Sequence[Message], *, tools: list[dict[str, Any]] | None, add_generation_prompt: bool) -> str:
        if tools is None and messages and all(map(_is_plain, messages)):
            values = {**constant, "messages": list(messages), "add_generation_prompt": add_generation_prompt}
            return "".join(compiled.root_render_func(compiled.new_context(values, shared=True)))
        text = apply(list(messages), tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt)
        assert isinstance(text, str)
        return text

    return render, (text, compiled.environment, given)


def _is_plain(message: Message) -> bool:
    return len(message) == 2 and type(message.get("role")) is str and type(message.get("content")) is str
