"""`formatter=jinja`: a template of one's own over `messages`, in jinja2's immutable sandbox.

The template sees messages (role, content, …), tools, bos_token, eos_token and add_generation_prompt. Content is
passed as a value: braces in it stay text. An undefined name is an error, not an empty string.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from dumbo.errors import UserError
from dumbo.formatter.control_tokens import Handling
from dumbo.formatter.conversation import Conversations, LossOn
from dumbo.formatter.loss_mask import MaskError
from dumbo.formatter.template_check import check_template, without_generation
from dumbo.interfaces import BadRow, Example, Message, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Jinja:
    """Renders with `template`.

    Args:
        template: jinja2 text, or a file that ends in .jinja, .jinja2 or .j2.
        loss_on, special_tokens_in_text, tool_calls: as for `formatter=chat`.
        append_eos: end the last answer with the tokenizer's eos, and train it, where the template does not.
    """

    template: str
    loss_on: LossOn = "assistant"
    special_tokens_in_text: Handling = "error"
    tool_calls: Literal["native", "as_text"] = "native"
    append_eos: bool = True

    def __post_init__(self) -> None:
        check_template(self.text(), "formatter.template")

    def text(self) -> str:
        """The template's text. Raises UserError when it names a file that is not there."""
        if self.template.endswith((".jinja", ".jinja2", ".j2")) and "\n" not in self.template:
            path = Path(self.template).expanduser()
            if not path.is_file():
                raise UserError(f"formatter.template: there is no file '{self.template}'.")
            return path.read_text(encoding="utf-8")
        return self.template

    def format(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Example | BadRow]:
        return _conversations(self, tokenizer, tokenizer.bos_token or "", tokenizer.eos_token or "").format(rows)


@functools.lru_cache(maxsize=4)
def _conversations(jinja: Jinja, tokenizer: PreTrainedTokenizerBase, bos: str, eos: str) -> Conversations:
    """For one tokenizer, as long as its bos and eos stay."""
    text = jinja.text()
    template = environment().from_string(without_generation(text))
    given = {"tools": None, "bos_token": bos, "eos_token": eos}

    def render(messages: Sequence[Message], *, tools: list[dict[str, Any]] | None, add_generation_prompt: bool) -> str:
        return template.render(
            {**given, "messages": list(messages), "tools": tools, "add_generation_prompt": add_generation_prompt}
        )

    try:
        return Conversations.of(
            render,
            tokenizer,
            (text, template.environment, given),
            loss_on=jinja.loss_on,
            special_tokens_in_text=jinja.special_tokens_in_text,
            tool_calls=jinja.tool_calls,
            append_eos=jinja.append_eos,
        )
    except MaskError as error:
        raise UserError(f"formatter.template cannot be used for training: {error}.") from error


class _Nothing(jinja2.StrictUndefined):
    """An undefined value that cannot be shown either, not even inside a list."""

    __repr__ = jinja2.StrictUndefined.__str__


class _Sandbox(ImmutableSandboxedEnvironment):
    """Refuses a forbidden attribute at once; jinja's own sandbox hands out an undefined value for it."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"access to '{attribute}' of a value of type {type(obj).__name__} is refused")


def environment() -> ImmutableSandboxedEnvironment:
    """The sandbox: no attributes that begin with an underscore, no changing of what is passed in."""
    sandbox = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=_Nothing,
        extensions=["jinja2.ext.loopcontrols"],
    )
    sandbox.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    sandbox.globals["raise_exception"] = _raise_exception
    return sandbox


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
