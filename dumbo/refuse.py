"""What Hydra accepts, or answers with a traceback, and nobody means: refused before anything is composed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, Sweep
from hydra.errors import HydraException

from dumbo.errors import UserError
from dumbo.groups import GROUPS, LIST_GROUPS
from dumbo.override_text import value_text

SWEEP_WANTED = "a sweep is started with -m.\n  Write python -m dumbo -m …, and leave hydra.mode out."


def refuse_early(words: Sequence[str], *, multirun: bool) -> None:
    """Reads the overrides one by one.

    Raises:
        UserError: a word that the grammar cannot read; several values without -m; a list for a group of one
            choice, a group set to null, to a number or taken away, `+` before a group.
    """
    parser = OverridesParser.create()
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            raise UserError(unreadable(word, str(error))) from error
        if override.is_sweep_override() and not multirun:
            raise UserError(_several(word, override))
        key = override.key_or_group
        if key == "hydra.mode" and not multirun:
            raise UserError(f"{word}: {SWEEP_WANTED}")
        if key == "experiment" and not override.is_add():
            raise UserError(f"experiment is chosen on top of the rest: write +experiment={override.value() or 'NAME'}.")
        if key in GROUPS:
            _refuse_group(word, key, override)


def typed_text(words: Sequence[str], key: str) -> str | None:
    """The last text typed for a top-level key, out of its quotes; None when it was not typed, or is null.

    Raises:
        UserError: several values (a sweep over it), which no such key takes.
    """
    typed = [word for word in words if word.lstrip("+").startswith(f"{key}=")]
    if not typed:
        return None
    try:
        value = OverridesParser.create().parse_override(typed[-1]).value()
    except HydraException as error:
        raise UserError(unreadable(typed[-1], str(error))) from error
    if isinstance(value, Sweep | list | dict):
        raise UserError(f"{key} takes one folder, got {typed[-1].partition('=')[2]}.")
    return None if value in (None, "") else str(value)


def unreadable(word: str, text: str) -> str:
    """The fault for an override that the grammar does not take."""
    lines = [line for line in text.splitlines() if line.strip()] or ["it follows no rule of Hydra's grammar"]
    reason = lines[0].removeprefix("LexerNoViableAltException: ").strip().rstrip(".")
    return (
        f"The override {word} cannot be read: {reason}.\n"
        "  Values with special characters need quotes inside quotes: 'dataset.path=\"a b.jsonl\"'; lists are [a,b] without spaces."
    )


def _several(word: str, override: Override) -> str:
    key, _, value = word.partition("=")
    if "(" in value and not value.startswith(("choice(", "range(", "interval(", "glob(", "shuffle(", "sort(", "tag(")):
        return unreadable(word, "it has a bracket outside quotes")
    bare = override.key_or_group
    if isinstance(override.value(), IntervalSweep):
        return f"{word} is an interval, and -m was not typed.\n  A search in it: python -m dumbo -m hydra/sweeper=optuna '{word}'"
    if bare in GROUPS and bare not in LIST_GROUPS:
        together = ""
    else:
        together = f"\n  One list for one run: {key}=[{value}]" if "(" not in value and "[" not in value else ""
    return f"{word} has several values, and -m was not typed.\n  A run for each of them: python -m dumbo -m {word}{together}"


def _refuse_group(word: str, group: str, override: Override) -> None:
    listed = group in LIST_GROUPS
    if override.is_delete():
        if not listed:
            raise UserError(f"~{group}: a run needs a {group}. Write {group}=NAME (dumbo --info {group}).")
        return
    if override.is_add() or override.is_force_add():
        _, _, typed = word.partition("=")
        raise UserError(f"{word}: every config has a {group} already. Leave out the '+': {group}={typed}")
    value = override.value()
    for choice in _choices(value):
        _refuse_choice(group, choice, listed)


def _choices(value: Any) -> list[Any]:
    """What a group would be set to: in a sweep, in each job."""
    if isinstance(value, ChoiceSweep):
        return list(value.list)
    return [] if isinstance(value, Sweep) or type(value).__name__ == "Glob" else [value]


def _refuse_choice(group: str, choice: Any, listed: bool) -> None:
    right = f"{group}=[NAME,…], {group}=[] for none" if listed else f"{group}=NAME (dumbo --info {group})"
    if choice is None or choice == "":
        raise UserError(f"{group} cannot be {'null' if choice is None else 'empty'}.\n  Write {right}.")
    if isinstance(choice, list):
        if not listed:
            several = (
                " Several files go into one: dataset=files dataset.path=[a.jsonl,b.jsonl]."
                if group == "dataset"
                else ""
            )
            first = str(choice[0]) if choice else "NAME"
            raise UserError(
                f"{group} takes one choice, got the list {value_text(choice)}.\n  Write {group}={first}.{several}"
            )
        wrong = [item for item in choice if not isinstance(item, str)]
    else:
        wrong = [] if isinstance(choice, str) else [choice]
    if wrong:
        raise UserError(f"{group} takes names of choices, got {value_text(wrong[0])}.\n  Write {right}.")
