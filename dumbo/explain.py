"""What Hydra and OmegaConf raise while composing, said so that a user can act on it.

compose.py catches; here the error becomes one text: what was set, what there is, the nearest valid name.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from dumbo.allow_list import resolve_class
from dumbo.errors import UserError
from dumbo.faults import unknown_key
from dumbo.groups import GROUPS, LIST_GROUPS
from dumbo.options import SECTIONS
from dumbo.refuse import SWEEP_WANTED, unreadable
from dumbo.search_path import DumboSearchPath, choices_of
from dumbo.suggest import did_you_mean

FILE_GROUP = "from_file"
"""The group under which FILE.yaml of the command line is stored."""


def explain(error: BaseException, overrides: Sequence[str]) -> str:
    """One clear text for an error of composing: what was set, what there is, the nearest valid name."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    missing = next((link for link in chain if isinstance(link, MissingConfigException)), None)
    if missing is not None and missing.missing_cfg_file:
        return _explain_missing(missing)
    if "interpolation '${sweep_dir}'" in str(error):
        return f"hydra.mode is MULTIRUN: {SWEEP_WANTED}"
    if isinstance(error, UserWarning):
        where = re.search(r"path=(\S+)", str(error))
        return f"hydra.searchpath: there is no folder '{where.group(1) if where else error}'."
    first = str(error).strip()
    if found := re.search(r"Could not override '([^']+)'", first):
        return _explain_key(found.group(1), chain, overrides)
    if found := re.search(r"Could not append to config\. An item is already at '([^']+)'", first):
        return f"'{found.group(1)}' exists already: leave out the '+'."
    if found := re.search(r"Could not delete from config\. '([^']+)' does not exist", first):
        return f"~{found.group(1)}: there is nothing of that name to take away."
    if "No match in the defaults list" in first or "Could not override '" in first:
        name = re.search(r"'([^']+)'", first)
        return _explain_group(name.group(1) if name else "", first)
    if "raised while composing config" in first and len(chain) > 1:
        place = first.split(":")[0].replace(f"'{FILE_GROUP}/experiment'", "the file on the command line")
        return f"{place}: {_reason(chain[-1])}"
    refused = next((link for link in chain if type(link).__module__.startswith("omegaconf")), None)
    if first.startswith("Error merging override ") and refused is not None:  # against a dataclass (hydra.launcher)
        return _reason(refused)
    return _explain_value(first, overrides)


def _reason(error: BaseException) -> str:
    """What OmegaConf says of a value in a YAML file, with the key it says it of."""
    said = str(error).strip().splitlines()[0].rstrip(".")
    key = getattr(error, "full_key", None)
    return f"{key}: {said}." if key else f"{said}."


def _explain_value(text: str, overrides: Sequence[str]) -> str:
    """What is left: a value that cannot be read or put where it was said."""
    word = next((o for o in overrides if o and o in text), None)
    if word and any(sign in text for sign in ("iable", "mismatched input", "token recognition", "extraneous input")):
        return unreadable(word, text)
    return text.splitlines()[0]


def _explain_missing(error: MissingConfigException) -> str:
    path = str(error.missing_cfg_file)
    for group, choice in (("model", "pretrained"), ("dataset", "hub")):
        if path.startswith(f"{group}/") and "/" in (name := path.removeprefix(f"{group}/")):
            return f"{group}={name}: a name on the hub, or a path, goes into {group}.path.\n  Write {group}={choice} {group}.path={name}"
    group, _, name = path.rpartition("/")
    if not group:
        return f"There is no config '{path}'."
    if group == FILE_GROUP:
        return f"There is no experiment file '{name}'."
    options = sorted(error.options or choices_of(group))
    if not options:
        return f"There is no group '{group}'.{did_you_mean(group, GROUPS)}\n  groups: {', '.join(GROUPS)}"
    if (group, name) in LATER:
        return f"{group}={name} is not built yet.\n  choices of {group}: {', '.join(options)}"
    return f"{group} has no choice '{name}'.{did_you_mean(name, options)}\n  choices of {group}: {', '.join(options)}"


LATER = (
    {("patch", n) for n in ("qlora", "neftune")}
    | {("trainer", n) for n in ("dpo", "kto", "orpo", "simpo", "grpo", "reward")}
    | {("dataset", "mixture")}
)


def _explain_key(key: str, chain: Sequence[BaseException], overrides: Sequence[str]) -> str:
    head, _, last = key.rpartition(".")
    group = key.split(".")[0]
    if group in LIST_GROUPS and "." in key:
        name = key.split(".")[1]
        if name in choices_of(group) and not any(_has(link, f"{group}.{name}") for link in chain):
            swept = any(o.startswith(f"{group}=") and ("],[" in o or "choice(" in o) for o in overrides)
            note = (
                f"\n  In a sweep over {group} itself, write {key}=choice(…): a fixed value is set before the choices are."
                if swept
                else ""
            )
            others = [] if swept else _chosen(group, chain)
            wanted = ",".join([*others, name])
            return f"{key} is set, but {group}.{name} was not chosen.\n  Write {group}=[{wanted}] {key}=…{note}"
        if not any(_has(link, f"{group}.{name}") for link in chain):
            return f"{group} has no choice '{name}'.{did_you_mean(name, choices_of(group))}\n  choices of {group}: {', '.join(choices_of(group))}"
    root = next((r for r in (_root(link) for link in chain) if r is not None), None)
    node = OmegaConf.select(root, head) if root is not None and head else root
    valid = [str(k) for k in node if str(k) not in ("hydra", "_target_")] if isinstance(node, DictConfig) else []
    if not valid and head and root is not None:
        parent, _, child = head.rpartition(".")
        above = OmegaConf.select(root, parent) if parent else root
        if isinstance(above, DictConfig) and child not in above:
            valid_above = [str(k) for k in above if str(k) not in ("hydra", "_target_")]
            return unknown_key(parent, child, valid_above)
        return f"{key} cannot be set: {head} has no keys of its own."
    if not head and last in GROUPS:
        return f"{last} takes names of choices, not keys.\n  Write {last}=NAME (dumbo --info {last})."
    if _takes(node, last):
        return f"The YAML file of {head} leaves out '{last}': add it with +{key}=…, or write it into the file."
    if not head:
        valid = [*GROUPS, *SECTIONS, *[v for v in valid if v not in GROUPS and v not in SECTIONS]]
    return unknown_key(head, last, valid)


def _takes(node: Any, key: str) -> bool:
    """Whether the class of a plugin's node has an argument that its YAML file does not state."""
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    try:
        cls = resolve_class(target, (), DumboSearchPath.config_dirs) if target else None
    except UserError:
        return False
    return cls is not None and key in inspect.signature(cls).parameters


def _has(error: BaseException, key: str) -> bool:
    root = _root(error)
    return root is not None and OmegaConf.select(root, key) is not None


def _chosen(group: str, chain: Sequence[BaseException]) -> list[str]:
    """What a group that takes a list holds in the config that was being made."""
    root = next((found for found in map(_root, chain) if found is not None), None)
    node = OmegaConf.select(root, group) if root is not None else None
    return [str(name) for name in node if name != "none"] if isinstance(node, DictConfig) else []


def _root(error: BaseException) -> Any:
    parent = getattr(error, "parent_node", None)
    return parent._get_root() if parent is not None else None


def _explain_group(name: str, text: str) -> str:
    if name in GROUPS:
        return text.splitlines()[0]
    return (
        f"There is no group or key '{name}'.{did_you_mean(name, [*GROUPS, *SECTIONS])}\n  groups: {', '.join(GROUPS)}"
    )
