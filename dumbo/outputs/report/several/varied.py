"""What differs between runs: the keys that a sweep varied, or those that numbers depend on and that are not the same in all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dumbo.groups import GROUPS, LIST_GROUPS
from dumbo.outputs.config_hash import what_counts
from dumbo.outputs.report.reading import as_number
from dumbo.outputs.report.several.jobs import Several, shown_json
from dumbo.outputs.report.values import cut, setting

PLACES = ("run_dir", "sweep_dir", "resume", "repeat", "run")
"""Where a run lies, or which one it is: different in all of them, and of no interest."""
OTHER_VERBS = ("preview", "plan", "evaluate", "chat", "export", "report", "doctor", "sweep")
ABSENT = "(absent)"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
Value = float | int | str


@dataclass(frozen=True)
class Varied:
    """A key and its value in each job, in the order of the jobs; None where it is not known.

    Attributes:
        label: the shortest end of the key that no other key has.
    """

    key: str
    label: str
    values: list[Value | None]

    @property
    def distinct(self) -> list[Value]:
        """Numbers by size, then texts by name."""
        there = {value for value in self.values if value is not None}
        return sorted(there, key=lambda value: (isinstance(value, str), value))

    @property
    def is_numeric(self) -> bool:
        return all(not isinstance(value, str) for value in self.values if value is not None)

    @property
    def is_seed(self) -> bool:
        """Whether its values are repeats of the same thing."""
        return self.key.rpartition(".")[2] == "seed"


def varied(several: Several) -> list[Varied]:
    """The keys that differ, those of the sweep's own words first.

    A sweep's words stand for what they bring along: below a swept group (`patch=[lora],[]`) only other swept keys are told.
    """
    words = [_pairs(job.words) for job in several.jobs] if several.is_sweep else []
    typed = _differing(words)
    inside = tuple(f"{key}." for key in typed)
    columns: dict[str, list[Value | None]] = {}
    for key in typed:
        columns[key] = [_typed_or_config(own, job.config, key) for own, job in zip(words, several.jobs, strict=True)]
    configs = [what_counts(job.config) for job in several.jobs]
    chosen, of_chosen = _choices(configs)
    for key in [*chosen, *_differing([config for config in configs if config])]:
        told = key in columns or key.startswith(inside) or key.endswith("._target_")
        if key in chosen or not (told or key in LIST_GROUPS):  # `patch: {}` of runs without any is told by the choice
            columns.setdefault(key, chosen.get(key) or _column(configs, key, of_chosen))
    columns = {key: values for key, values in columns.items() if len(set(values) - {None}) > 1}
    labels = _labels(list(columns))
    return [Varied(key, labels[key], values) for key, values in columns.items()]


def _choices(configs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[Value | None]], set[str]]:
    """Groups whose classes differ, as one key each ("patch" -> "lora", "none"); and the nodes that not all runs have."""
    targets = [
        {key.removesuffix("._target_"): value for key, value in config.items() if key.endswith("._target_")}
        for config in configs
    ]
    differing = {place for place in _differing([one for one in targets if one]) if place.split(".")[0] in GROUPS}
    groups = dict.fromkeys(place.split(".")[0] for place in sorted(differing))
    found: dict[str, list[Value | None]] = {}
    for group in groups:
        if group in LIST_GROUPS:
            found[group] = [",".join(sorted(p.partition(".")[2] for p in one if p.startswith(f"{group}."))) or "none" if one else None
                            for one in targets]  # fmt: skip
        else:
            found[group] = [str(one[group]).rpartition(".")[2] if group in one else None for one in targets]
    return found, differing


def _column(configs: Sequence[Mapping[str, Any]], key: str, of_chosen: set[str]) -> list[Value | None]:
    """A key's values; what belongs to a class that not all runs have is None where it is not there."""
    if any(key.startswith(f"{place}.") for place in of_chosen):
        return [value_of(config[key]) if key in config else None for config in configs]
    return [value_of(config.get(key, ABSENT)) if config else None for config in configs]


def _typed_or_config(own: Mapping[str, Any], config: Mapping[str, Any], key: str) -> Value | None:
    """The resolved value where there is one (two ways to write a number are one number), else, and for choices, the word's."""
    if key in config and key not in GROUPS:
        return value_of(config[key])
    return value_of(own[key]) if key in own else None


def _differing(those: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that do not have the same value everywhere, in the order of their first appearance."""
    first: dict[str, Any] = {}
    differs: dict[str, None] = {}
    for number, one in enumerate(those):
        for key, value in one.items():
            if key not in first:
                first[key] = value
                if number:
                    differs[key] = None
            elif key not in differs and first[key] != value:
                differs[key] = None
        for key in first.keys() - one.keys():
            differs.setdefault(key)
    return [key for key in first if key in differs]


def _pairs(words: Sequence[str]) -> dict[str, Any]:
    """Words as typed -> key and value."""
    pairs = [_pair(word) for word in words if "=" in word]
    return {
        key: value
        for key, value in pairs
        if key.split(".")[0] not in PLACES and not key.startswith(("hydra.", "hydra/"))
    }


@lru_cache(maxsize=10_000)
def _pair(word: str) -> tuple[str, Any]:
    key, _, text = word.lstrip("+").partition("=")
    for kind in (int, float):
        try:
            return key, kind(text)
        except ValueError:
            continue
    return key, {"true": True, "false": False, "null": None}.get(text, text.strip("\"'"))


def value_of(value: Any) -> Value:
    """A config's value as a number, or as a short text."""
    number = as_number(value)
    if number is None and isinstance(value, str) and NUMBER.fullmatch(value):
        number = as_number(float(value))  # `1e-5` is a text in YAML 1.1
    if number is not None:
        return number
    return cut(shown_json(value) if isinstance(value, list | dict) else setting(value), 120)


def _labels(keys: list[str]) -> dict[str, str]:
    found = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        found[key] = next(
            (end for end in ends if not any(o != key and (o == end or o.endswith(f".{end}")) for o in keys)), key
        )
    return found


def shown(value: Value | None) -> str:
    """As a table has it."""
    return "–" if value is None else value if isinstance(value, str) else setting(value)
