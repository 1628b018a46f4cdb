"""The faults of one config: gathered, so that all are told at once, and worded with what to write instead.

check.py and the steps it takes (resolve.py, bind.py) add to one report.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from dumbo.conform import literals, misfit
from dumbo.errors import ConfigError
from dumbo.groups import GROUPS, LIST_GROUPS
from dumbo.suggest import nearest


@dataclass
class Report:
    """What was found so far; `config_dirs`, typed as --config-dir, are where plugins may lie too."""

    config_dirs: tuple[Path, ...]
    faults: list[str] = field(default_factory=list)

    def stop_if_any(self) -> None:
        if self.faults:
            raise ConfigError(self.faults)


def unknown_key(path: str, key: str, valid: Sequence[str]) -> str:
    """The fault for a key that a node does not have."""
    prefix = f"{path}." if path else ""
    near = _elsewhere(path, key, valid) or (f"{prefix}{name}" if (name := nearest(key, valid)) else "")
    hint = f" Did you mean {near}?" if near else ""
    if path == "trainer" and (instead := _set_elsewhere(key)) is not None:
        near, hint = instead, f" {instead}"
    group = path.split(".")[0] if path else ""
    more = f" (dumbo --info {group})" if group in GROUPS else ""
    if not near and path in GROUPS and path not in LIST_GROUPS and (others := _choices_with(path, key)):
        known = [name for name in ("files", "pretrained", "jinja") if name in others] or others
        hint = f" {path}={known[0]} has one: {path}={known[0]} {path}.{key}=…"
    if not valid:
        return f"{path} has no keys at all, and so no '{key}'.{hint}"
    return f"{path or 'The config'} has no key '{key}'.{hint}\n  keys{f' of {path}' if path else ''}: {', '.join(valid)}{more}"


def _elsewhere(path: str, key: str, valid: Sequence[str]) -> str:
    """Where a key is that is typed without its group, or called as TrainingArguments call it."""
    from dumbo.legacy.names import LORA_KEYS, TRAINER_KEYS
    from dumbo.trainer.extra import OWN_KEYS

    named = TRAINER_KEYS.get(key) or OWN_KEYS.get(key, key)
    if path == "patch.lora" and LORA_KEYS.get(key) in valid:
        return f"{path}.{LORA_KEYS[key]}"
    if path == "trainer" and named in valid:
        return f"trainer.{named}"
    groups = sorted(set(GROUPS) - set(LIST_GROUPS), key=lambda group: (group != "trainer", group)) if path == "" else []
    found = (group for group in groups if _choices_with(group, named))
    return next((f"{group}.{named}" for group in found), "")


def _set_elsewhere(key: str) -> str | None:
    """What to write for one of transformers' names that is no key of `trainer` here."""
    from dumbo.trainer.extra import ELSEWHERE

    if key == "gradient_accumulation_steps":
        return "It is derived: trainer.global_batch_size / (trainer.micro_batch_size x ranks)."
    return next((f"It is set elsewhere: {instead}" for instead, names in ELSEWHERE.items() if key in names), None)


def _choices_with(group: str, key: str) -> list[str]:
    """Choices of a group whose YAML has a key."""
    from dumbo.search_path import files_of

    found = [
        name for name, file in files_of(group).items() if re.search(rf"(?m)^{re.escape(key)}:", file.read_text("utf-8"))
    ]
    return sorted(found)


def wrong_type(name: str, wanted: str, value: Any, annotation: Any, default: Any) -> str:
    """The fault for a value that does not fit, with what to write: a near option, a rounded number, the default."""
    text = f"{name} must be {wanted}, got {shown(value)}."
    options = literals(annotation)
    if options and isinstance(value, str) and (near := nearest(value, options)):
        return f"{text}\n  Did you mean {name}={near}?"
    if isinstance(value, float) and value.is_integer() and "whole number" in wanted:
        return f"{text}\n  Write {name}={int(value)}"
    if isinstance(annotation, type) and is_dataclass(annotation):
        return f"{text}\n  Set its keys one by one: {name}.{next(iter(annotation.__dataclass_fields__))}=…"
    if isinstance(value, str | int | float) and "a list of" in wanted and misfit([value], annotation) is None:
        return f"{text}\n  Write {name}=[{_plain(value)}]"
    if default is inspect.Parameter.empty or isinstance(default, list | dict):
        return f"{text}\n  Write {name}=…, or leave it out."
    return f"{text}\n  Write {name}={_plain(default)}, say"


def _plain(value: Any) -> str:
    from dumbo.override_text import value_text

    return value_text(value)


def shown(value: Any) -> str:
    """A value as a fault names it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"the text '{value}'"
    if isinstance(value, list):
        return f"the list {value}"
    return repr(value)


def own_complaint(path: str, text: str, keys: Collection[str]) -> str:
    """A plugin's own complaint under the full name of what it complains of."""
    if text.startswith(f"{path}."):
        return text
    key = text.split(" ")[0].split(".")[0]
    return f"{path}.{text}" if path and key in keys else f"{path}: {text}" if path else text
