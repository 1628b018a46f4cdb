"""Special tokens and the chat template of a tokenizer, set from the config (`model.tokenizer.*`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError
from dumbo.formatter.template_check import check_template
from dumbo.suggest import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """What to change of a model's own tokenizer. Null: leave as it is.

    Args:
        path: take the tokenizer from this hub id or folder instead of the model's.
        pad_token, eos_token, bos_token: text of the token; one that the vocabulary lacks is added to it.
        chat_template: `chatml` (shipped), a file, or the template itself.
        added_tokens: further tokens to add, each kept whole by the tokenizer.
    """

    path: str | None = None
    pad_token: str | None = None
    eos_token: str | None = None
    bos_token: str | None = None
    chat_template: str | None = None
    added_tokens: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if any(not token.strip() for token in (*self.added_tokens, *filter(None, self._named().values()))):
            raise UserError("a special token must not be empty.")
        if self.chat_template is not None:
            check_template(self.template_text() or "", "chat_template")

    def _named(self) -> dict[str, str | None]:
        return {"pad_token": self.pad_token, "eos_token": self.eos_token, "bos_token": self.bos_token}

    def template_text(self) -> str | None:
        """The template itself: from the shipped ones, a file, or as written.

        Raises:
            UserError: a name that is neither a shipped template nor a file.
        """
        if self.chat_template is None:
            return None
        if "{{" in self.chat_template or "{%" in self.chat_template:
            return self.chat_template
        shipped = TEMPLATES / f"{self.chat_template}.jinja"
        path = shipped if shipped.is_file() else Path(self.chat_template).expanduser()
        if not path.is_file():
            names = [file.stem for file in TEMPLATES.glob("*.jinja")]
            raise UserError(
                f"chat_template '{self.chat_template}' is neither a shipped template ({', '.join(names)}), nor a file, "
                f"nor a template.{did_you_mean(self.chat_template, names)}"
            )
        return path.read_text(encoding="utf-8")

    def apply(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Sets the tokens on a tokenizer, in place. Ids that are new to it are noted in `tokenizer.added_by_dumbo`."""
        before = len(tokenizer)
        if self.added_tokens:
            tokenizer.add_tokens(list(self.added_tokens))
        named: dict[str, Any] = {name: token for name, token in self._named().items() if token is not None}
        if named:
            tokenizer.add_special_tokens(named)
        if (template := self.template_text()) is not None:
            tokenizer.chat_template = template
        tokenizer.added_by_dumbo = list(range(before, len(tokenizer)))


def added_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that the config added to this tokenizer."""
    return list(getattr(tokenizer, "added_by_dumbo", []))
