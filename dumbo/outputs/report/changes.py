"""What the user changed: the run's config beside the defaults of the choices it was composed from.

The choices stand in run.json (`choices`). For runs that do not have them they are found again: the YAML file of the
group that names the same class and differs least.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dumbo.groups import GROUPS, LIST_GROUPS
from dumbo.outputs.report.folder import Folder
from dumbo.outputs.report.reading import Facts
from dumbo.outputs.report.tables import Row, Section, Table, leaves_of
from dumbo.outputs.report.values import cut, setting
from dumbo.search_path import DumboSearchPath, conf_folder, files_of

MOST_KEYS, MOST_CHOICES = 2000, 50
OF_TRAINING = ("performance", "verify", "audit")
"""Keys beside the groups that change what a run does; the others are other verbs' options, or say where it lies."""


def changes(run: Folder) -> Section:
    """A table of choices and one of changed keys, each with where it was set."""
    if not run.config:
        return Section("changes", "What was set")
    chosen = _choices(run)
    found: list[Row] = []
    special = _special(chosen)
    for place, (node, choice, defaults) in chosen.items():
        if choice is not None:
            found += _changed(run, special, place, node, defaults)
    shipped = _yaml(conf_folder() / "config.yaml")
    for key in OF_TRAINING:
        value, default = run.config.get(key), shipped.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            found += _changed(run, special, key, value, default)
        elif key in run.config and value != default:
            found.append(_row(run, special, key, default, value))
    lead = () if found else ("Every key is as its group has it.",)
    named = [Row((place, choice or "a choice that is not known here")) for place, (_, choice, _) in chosen.items()]
    tables = (
        Table("Keys that differ from their group's defaults", found, ("key", "default", "this run", "set by")),
        Table("Choices", named),
    )
    return Section("changes", "What was set", tables, lead)


Chosen = dict[str, tuple[Mapping[str, Any], str | None, Mapping[str, Any]]]


def _choices(run: Folder) -> Chosen:
    """Place in the config -> its keys, the choice they come from, and that choice's own keys."""
    found: Chosen = {}
    for group in GROUPS:
        nodes = run.config.at(group).values
        named = list(nodes.items())[:MOST_CHOICES] if group in LIST_GROUPS else [("", nodes)]
        for name, node in named:
            if isinstance(node, Mapping) and "_target_" in node:
                choice, defaults = _defaults(run, group, str(name), node)
                found[f"{group}.{name}" if name else group] = (node, choice, defaults)
    return found


def _special(chosen: Chosen) -> tuple[str, Mapping[str, Any]]:
    """What conf/special has for the pair of trainer and model, and what the pair is called."""
    trainer, model = (chosen.get(group, ({}, None, {}))[1] for group in ("trainer", "model"))
    return f"{trainer} with {model}", _yaml(conf_folder() / "special" / f"{trainer}_{model}.yaml")


@cache
def _files(group: str, _config_dirs: tuple[Path, ...]) -> Mapping[str, Path]:
    """`files_of`, which asks all installed packages, once."""
    return files_of(group)


def _defaults(run: Folder, group: str, name: str, node: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """The choice, and its keys."""
    files = _files(group, DumboSearchPath.config_dirs)
    known = {choice: _node(file, group, name) for choice, file in files.items()}
    same = {choice: keys for choice, keys in known.items() if keys.get("_target_") == node.get("_target_")}
    told = run.facts.get("choices", group)
    asked = name if group in LIST_GROUPS else told
    if isinstance(asked, str) and asked in same:
        return asked, same[asked]
    typed = next((word.partition("=")[2] for word in run.words if word.startswith(f"{group}=")), None)
    if typed in same:
        return typed, same[typed]
    if not same:
        return None, {}
    best = min(same, key=lambda choice: len(_different(node, same[choice])))
    return best, same[best]


def _node(file: Path, group: str, name: str) -> Mapping[str, Any]:
    keys = _yaml(file)
    return keys if "_target_" in keys else Facts(keys).at(group, name).values if name else Facts(keys).at(group).values


def _yaml(file: Path) -> Mapping[str, Any]:
    """A file's keys, references as they are; none for one of the user's own that is gone or broken by now."""
    try:
        return _loaded(file, file.stat().st_mtime_ns)
    except (OmegaConfBaseException, YAMLError, OSError, ValueError):
        return {}


@cache
def _loaded(file: Path, _changed_at: int) -> Mapping[str, Any]:
    node = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    return {str(key): value for key, value in node.items()} if isinstance(node, dict) else {}


def _different(node: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> (default, value), where they differ; keys that refer to others are as those are."""
    known = dict(leaves_of(defaults))
    own = dict(itertools.islice(leaves_of(node), MOST_KEYS))
    found = {}
    for key, value in own.items():
        default = known.get(key)
        refers = isinstance(default, str) and "${" in default
        new_and_empty = key not in known and value in (None, {}, [])
        if not (refers or new_and_empty or _same(default, value)):
            found[key] = (default, value)
    return found


def _same(default: Any, value: Any) -> bool:
    return bool(default == value) and isinstance(default, bool) == isinstance(value, bool)


def _changed(run: Folder, special: tuple[str, Any], place: str, node: Any, defaults: Any) -> list[Row]:
    pairs = _different(node, defaults)
    return [_row(run, special, f"{place}.{key}", default, value) for key, (default, value) in pairs.items()]


def _row(run: Folder, special: tuple[str, Any], key: str, default: Any, value: Any) -> Row:
    return Row((cut(key, 200), setting(default), setting(value), _set_by(run, special, key, value)))


def _set_by(run: Folder, special: tuple[str, Any], key: str, value: Any) -> str:
    """Where a key got its value, as far as that can be known."""
    if any(word.lstrip("+").partition("=")[0] in _above(key) for word in run.words):
        return "the command line"
    pair, keys = special
    if _same(Facts(keys).get(*key.split(".")), value):
        return pair
    named = next((word.partition("=")[2] for word in run.words if word.lstrip("+").startswith("experiment=")), None)
    return (
        f"experiment {cut(named, 100)}" if named else "the experiment's file" if run.experiment else "the composition"
    )


def _above(key: str) -> set[str]:
    """The key and those it lies within."""
    parts = key.split(".")
    return {".".join(parts[:count]) for count in range(2, len(parts) + 1)} | ({key} if len(parts) == 1 else set())
