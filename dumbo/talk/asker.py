"""Messages -> the token ids that the model is asked with: as the run's formatter would have asked it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError
from dumbo.interfaces import Message
from dumbo.outputs.printable import printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Asker:
    """One model's way of being asked.

    Attributes:
        tokenizer: the model's.
        run: the run whose formatter asks; None for a model's folder.
        config_dirs: folders typed now whose plugins may run.
    """

    tokenizer: PreTrainedTokenizerBase
    run: Path | None = None
    config_dirs: Sequence[Path] = ()
    _told: bool = False

    @cached_property
    def _config(self) -> Any:
        from omegaconf import OmegaConf

        return OmegaConf.load(self.run / "config.yaml") if self.run is not None else OmegaConf.create({})

    @property
    def _target(self) -> str:
        from omegaconf import OmegaConf

        return str(OmegaConf.select(self._config, "formatter._target_") or "")

    @cached_property
    def formatter(self) -> Any:
        """The run's formatter; None for a model's folder, and where its code may not run."""
        from omegaconf import OmegaConf

        from dumbo.allow_list import announced
        from dumbo.check import build_one

        allowed = {"dumbo", *(point.value.split(".")[0] for point in announced())}
        if self.run is None or not (self.config_dirs or self._target.split(".")[0] in allowed):
            return None
        return build_one("formatter", OmegaConf.to_container(self._config.formatter, resolve=True), self.config_dirs)

    @property
    def completes(self) -> bool:
        """Whether the model goes on from a text instead of answering: trained on plain text, or without a template."""
        from dumbo.formatter.text import Text

        return isinstance(self.formatter, Text) or (self.formatter is None and not self.tokenizer.chat_template)

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """(T,) token ids of a conversation that waits for its answer.

        Raises:
            UserError: formatter or template refuse it.
        """
        from dumbo.formatter.asking import prompt_ids

        found = prompt_ids(self.formatter, messages, self.tokenizer) if self.formatter is not None else None
        if found is not None:
            return found
        self._tell()
        if self.tokenizer.chat_template:
            text = self._through_template(messages)
        else:
            text = "\n".join(message.get("content", "") for message in messages if message["role"] != "system")
        return list(self.tokenizer(text, add_special_tokens=not self.tokenizer.chat_template)["input_ids"])

    def _tell(self) -> None:
        """Says once that the run's formatter is not what asks."""
        if self.run is None or self._told:
            return
        self._told = True
        print(
            f"The run's formatter {printable(self._target)} does not say how it would ask this: asked as the tokenizer's chat template "
            "does." + ("" if self.config_dirs else " Type --config-dir FOLDER to let it run."),
            file=sys.stderr,
        )

    def _through_template(self, messages: Sequence[Message]) -> str:
        """As `formatter=chat` renders it. Raises UserError: the template refuses it (some take no system message)."""
        import jinja2

        apply: Any = self.tokenizer.apply_chat_template
        try:
            return str(apply(list(messages), tokenize=False, add_generation_prompt=True))
        except jinja2.TemplateError as error:
            raise UserError(f"The model's chat template refuses this: {error}.") from error
