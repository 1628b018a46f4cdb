"""What was typed for a sweep: which words are swept and which fixed; taken up again by `-m sweep_dir=PATH` alone."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from dumbo.command import Command, parse
from dumbo.hydra_node import TYPED_ONLY, key_of
from dumbo.outputs.secrets import hidden_keys, masked_words
from dumbo.refuse import typed_text
from dumbo.repeat import require_typed
from dumbo.sweep.folder import default_folder, is_of_the_jobs, require_sweep

LONGEST_NAME = 80
ONCE = ("sweep_dir", "sweep.force", "sweep.detach")
"""Keys that are of one invocation: not taken up by the next."""


def swept_keys(words: Sequence[str]) -> list[str]:
    """The keys that are given several values, in the order typed."""
    parser = OverridesParser.create()
    found: dict[str, None] = {}
    for word in words:
        try:
            if parser.parse_override(word).is_sweep_override():
                found[key_of(word)] = None
        except HydraException:  # refuse.py says it, with what to write instead
            continue
    return list(found)


def folder_of(command: Command) -> Path:
    """The sweep's folder: `sweep_dir=`, or one named for the command; another password makes no other sweep."""
    asked = typed_text(command.overrides, "sweep_dir")
    if asked is not None:
        return Path(asked).expanduser().absolute()
    swept = swept_keys(command.overrides)
    fixed = masked_words([word for word in command.overrides if key_of(word) not in swept])
    return default_folder(fixed, swept, command.file, command.config_dirs).absolute()


def to_record(command: Command) -> list[str]:
    """The words for sweep.json: enough to type the sweep again, secrets masked."""
    words = [word for word in command.typed if key_of(word) not in ONCE]
    return masked_words(words)


def with_recorded(command: Command) -> tuple[Command, bool]:
    """The command, with the recorded words in front of its own when nothing but the folder was typed; and whether so.

    Raises:
        UserError: the folder is no sweep's; words that must be typed again (secrets, what runs code).
    """
    asked = typed_text(command.overrides, "sweep_dir")
    own = [key_of(word) for word in command.overrides if is_of_the_jobs(word)]
    if asked is None or command.file is not None:
        return command, False
    folder = Path(asked).expanduser()
    if own and not (folder / "sweep.json").is_file():
        return command, False
    words = [str(word) for word in require_sweep(folder).get("typed", [])]
    again = {*TYPED_ONLY, "hydra.searchpath", *(name for word in words for name in hidden_keys(word))}
    if any(key not in again for key in own):
        return command, False
    chosen = {key_of(word) for word in command.overrides}
    require_typed(words, chosen, command, "sweep_dir")
    before = parse([word for word in words if key_of(word) not in chosen])
    return replace(command, overrides=(*before.overrides, *command.overrides), file=before.file), True


def own_words(overrides: Sequence[str], swept: Collection[str]) -> list[str]:
    """A job's own words: of the swept keys."""
    return [word for word in overrides if key_of(word) in swept]


def suffix(varied: Sequence[str]) -> str:
    """What a job's folder is called besides its number: its own overrides, readable, short, and a hash against clashes."""
    if not varied:
        return ""
    text = "-".join(varied)
    readable = "".join(char if (char.isascii() and char.isalnum()) or char in "=._-+" else "_" for char in text)
    return f"-{readable[:LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:4]}"
