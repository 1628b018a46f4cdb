"""The overrides that a file of the older format stands for, as they are gathered, each in its group.

sections.py fills them, key by key; a key without a handler is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dumbo.errors import UserError
from dumbo.legacy.names import HINTS, MOST_NAMED
from dumbo.override_text import value_text
from dumbo.suggest import did_you_mean
from dumbo.trainer.extra import refusal

Handler = Callable[[Any, str], Any]
"""Takes a key's value and its full name."""


@dataclass
class Overrides:
    """What was translated so far.

    Attributes:
        name: the file's, for errors.
        patches, trackers: the words of each choice, by its name.
        off: choices that the file says are not wanted.
    """

    name: str
    model: list[str] = field(default_factory=list)
    patches: dict[str, list[str]] = field(default_factory=dict)
    dataset: list[str] = field(default_factory=list)
    formatter: list[str] = field(default_factory=list)
    trainer: list[str] = field(default_factory=list)
    trackers: dict[str, list[str]] = field(default_factory=dict)
    off: list[str] = field(default_factory=list)

    def in_order(self) -> list[str]:
        """All of them in the order of the groups, each once.

        Raises:
            UserError: one key is set to two values, or what is off is chosen.
        """
        words = [*self.model]
        if self.patches:
            words += [f"patch=[{','.join(self.patches)}]", *[word for own in self.patches.values() for word in own]]
        words += [*self.dataset, *self.formatter, *self.trainer]
        if self.trackers:
            words += [f"tracker=[{','.join(self.trackers)}]", *[word for own in self.trackers.values() for word in own]]
        self._refuse_contradictions(words)
        return list(dict.fromkeys(words))

    def _refuse_contradictions(self, words: list[str]) -> None:
        said: dict[str, str] = {}
        for word in words:
            key, _, value = word.partition("=")
            if said.setdefault(key, value) != value:
                raise UserError(
                    f"{self.name}: {key} is set twice, to {said[key]} and to {value}.\n  Leave one of them out."
                )
        for name in self.off:
            if name in self.patches or name in self.trackers:
                raise UserError(f"{self.name}: {name} is false, but chosen too.\n  Leave one of them out.")

    def chosen(self, node: Any, chosen: dict[str, list[str]], name: str) -> list[str] | None:
        """The words of a patch or tracker that a section turns on; None when it turns it off, or has no keys."""
        if node is False:
            self.off.append(name)
            return None
        words = chosen.setdefault(name, [])
        return None if node is True else words

    def each(self, node: Any, path: str, known: Mapping[str, Handler]) -> None:
        """Hands each key of a mapping to its handler; refuses the others by name."""
        if not isinstance(node, Mapping):
            raise UserError(f"{self.name}: {path or 'the file'} must be a mapping, got {node!r}.")
        for key, value in node.items():
            at = f"{path}.{key}" if path else str(key)
            if str(key) not in known:
                hint = _hint(str(key)) if path.endswith(("arguments", "lora")) else None
                near = "" if hint else did_you_mean(str(key), known)
                hint = hint or f"keys known there: {', '.join(list(known)[:MOST_NAMED])}" + ", …" * (
                    len(known) > MOST_NAMED
                )
                raise UserError(f"{self.name}: the key '{at}' has no counterpart.{near}\n  {hint}")
            if value is None and str(key) in ("liger", "lora", "peft", "wandb"):
                raise UserError(f"{self.name}: '{at}' is empty.\n  Write its keys, or leave it out.")
            if value is not None:
                known[str(key)](value, at)

    def into(self, words: list[str], prefix: str, names: Mapping[str, str]) -> dict[str, Handler]:
        """Handlers that turn keys into `prefix.name=value`."""

        def handler(new: str) -> Handler:
            return lambda value, at: words.append(f"{prefix}.{new}={value_text(value)}")

        return {old: handler(new) for old, new in names.items()}


def _hint(key: str) -> str | None:
    """What to do about a key of transformers or peft that is set otherwise here."""
    why = refusal(key)
    return HINTS.get(key) or (f"Leave it out here: {why}" if why else None)
