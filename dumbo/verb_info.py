"""`dumbo --info VERB`: a verb's options, with what each does, from the docstrings and types of `options.py`."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import fields, is_dataclass
from typing import Any

from dumbo.options import SECTIONS, Options
from dumbo.words import VERBS

WIDTH = 118
KEY = 34
"""Columns of `key: default`."""
READS = {
    "train": tuple(field.name for field in fields(Options) if field.name != "run"),
    "verify": ("run_dir",), "plan": ("run_dir",),
    "evaluate": ("run",), "chat": ("run",), "export": ("run",), "report": ("run",),
}  # fmt: skip
"""Keys of the top level that a verb reads."""
COMPOSES = ("train", "preview", "verify", "plan")
TOPICS = (*VERBS, *(name for name in SECTIONS if name not in VERBS))
"""The verbs, and what has options without being one (audit)."""


def verb_info(topic: str) -> str:
    """The options of a verb, or of `audit`.

    Args:
        topic: one of TOPICS.
    """
    section: Any = SECTIONS.get(topic)
    lines = [f"{topic}: {VERBS[topic] if topic in VERBS else _first(section)}", ""]
    lines += _of("", Options(), READS.get(topic, ()))
    if section is not None:
        lines += _of(f"{topic}.", section())
    if topic in COMPOSES:
        groups = "model, patch, dataset, formatter, trainer" + ", launch, tracker" * (topic == "train")
        lines += ["", f"The experiment besides: {groups} (dumbo --info trainer lists a group's keys)"]
    if topic == "train":
        lines += ["Proofs and audit at its start: dumbo --info verify, dumbo --info audit"]
    return "\n".join(lines).rstrip()


def _of(prefix: str, options: Any, names: tuple[str, ...] | None = None) -> list[str]:
    """A line or more for each option (names: of these alone), those within an option included."""
    lines: list[str] = []
    for field in fields(options):
        value, what = getattr(options, field.name), _told(type(options)).get(field.name, "")
        if names is not None and field.name not in names:
            continue
        if is_dataclass(value):
            lines += [f"  {prefix}{field.name}: {what}", *_of(f"{prefix}{field.name}.", value)]
        else:
            lines += _shown(f"{prefix}{field.name}: {_default(value)}", what)
    return lines


def _shown(key: str, what: str) -> list[str]:
    """`key: default`, and beside it what it does."""
    parts = textwrap.wrap(what, WIDTH - KEY - 2)
    head = [f"  {key}"] if len(key) >= KEY else []
    first = f"  {'' if head else key:<{KEY}}"
    return [*head, *((first if number == 0 else " " * (KEY + 2)) + part for number, part in enumerate(parts))]


def _default(value: Any) -> str:
    """As YAML would have it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    return _yaml(value)


def _yaml(value: Any) -> str:
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def _first(options: Any) -> str:
    return (inspect.getdoc(options) or "").splitlines()[0]


def _told(options: Any) -> dict[str, str]:
    """Argument -> what its docstring says of it."""
    text = (inspect.getdoc(options) or "").partition("Args:\n")[2]
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("    ") and not line.startswith("     "):
            name, _, said = line.strip().partition(": ")
            found[name] = said
        elif line.strip():
            found[name] += " " + line.strip()
    return found
