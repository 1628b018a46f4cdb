"""Every fault of a config in one report, before anything heavy is imported.

argv -> compose -> check -> train. Takes the composed config, gives the plugins: each `_target_` is resolved
against the allow list, its keys are bound to the constructor's signature and types, and the plugin is built
(cheap by contract). Nothing here imports torch, transformers, polars or rich; a test looks at sys.modules.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import re
import sys
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dumbo.allow_list import resolve_class
from dumbo.conform import literals, misfit
from dumbo.errors import ConfigError, UserError
from dumbo.options import SECTIONS, ChatOptions, DoctorOptions, Options, PreviewOptions, VerifyOptions
from dumbo.suggest import nearest

GROUPS: dict[str, tuple[str, ...]] = {
    "model": ("load_tokenizer", "load_model"),
    "patch": ("apply",),
    "dataset": ("load",),
    "formatter": ("format",),
    "trainer": ("train",),
    "launch": ("launch",),
    "tracker": ("start", "log", "finish"),
}
"""Each config group and the methods its classes must have."""

LIST_GROUPS = ("patch", "tracker")
"""Groups that take a list of choices, each under its own key."""


@dataclass(frozen=True, kw_only=True)
class Plugins:
    """The experiment as objects. The config ends where this begins.

    `patches` and `trackers` are keyed as in the config (`patch.lora.rank=8` is under "lora").
    """

    model: Any
    patches: dict[str, Any]
    dataset: Any
    formatter: Any
    trainer: Any
    launch: Any
    trackers: dict[str, Any]
    options: Options
    verify: VerifyOptions
    preview: PreviewOptions
    chat: ChatOptions
    doctor: DoctorOptions


def check(cfg: DictConfig | dict[str, Any], choices: Mapping[str, Any], config_dirs: Sequence[Path] = ()) -> Plugins:
    """Builds the plugins of a composed config.

    Args:
        cfg: the config without its `hydra` node; plain values where it is resolved already.
        choices: what was chosen in each group (`hydra.runtime.choices`).
        config_dirs: folders typed as `--config-dir`.

    Raises:
        ConfigError: with every fault found, not only the first.
    """
    report = _Report(config_dirs=tuple(config_dirs))
    plain = _resolve(cfg, "", report)
    report.stop_if_any()

    built: dict[str, Any] = {}
    for group in GROUPS:
        if group in LIST_GROUPS:
            built[group] = _list_group(group, plain.get(group), report)
        else:
            built[group] = _choice(group, plain.get(group), choices.get(group), report)
    sections = {name: _section(name, cls, plain.get(name), report) for name, cls in SECTIONS.items()}
    top = {key: value for key, value in plain.items() if key not in GROUPS and key not in SECTIONS}
    options = _section("", Options, top, report)
    report.stop_if_any()

    plugins = Plugins(
        model=built["model"],
        patches=built["patch"],
        dataset=built["dataset"],
        formatter=built["formatter"],
        trainer=built["trainer"],
        launch=built["launch"],
        trackers=built["tracker"],
        options=options,
        **sections,
    )
    report.faults += _conflicts(plugins.patches)
    for name, plugin in _all(plugins):
        try:
            problems = [str(problem) for problem in getattr(plugin, "problems", list)()]
        except (ValueError, TypeError) as error:  # raised instead of told
            problems = [str(error)]
        report.faults += [text if text.startswith(f"{name}.") else f"{name}: {text}" for text in problems]
    plugins = _fitted(plugins)
    report.faults += _batch(plugins)
    report.stop_if_any()
    return plugins


def build_one(group: str, node: Any, config_dirs: Sequence[Path] = ()) -> Any:
    """One plugin from its node alone (`chat` needs a run's model loader and nothing else)."""
    report = _Report(config_dirs=tuple(config_dirs))
    plugin = _build(group, node, GROUPS[group], report)
    report.stop_if_any()
    return plugin


@dataclass
class _Report:
    config_dirs: tuple[Path, ...]
    faults: list[str] = field(default_factory=list)

    def stop_if_any(self) -> None:
        if self.faults:
            raise ConfigError(self.faults)


def _resolve(node: Any, path: str, report: _Report) -> Any:
    """Plain Python from the config, references resolved; a fault for each key that is missing or does not resolve."""
    if isinstance(node, ListConfig):
        return [_resolve_child(node, index, f"{path}.{index}", report) for index in range(len(node))]
    if isinstance(node, DictConfig):
        if node._is_none():
            return None
        return {str(key): _resolve_child(node, key, f"{path}.{key!s}" if path else str(key), report) for key in node}
    if isinstance(node, float) and not math.isfinite(node):  # it would pass every comparison, and fail late
        report.faults.append(f"{path} is {node}, which is no number to work with.\n  Write {path}=NUMBER.")
    return node


def _resolve_child(parent: DictConfig | ListConfig, key: Any, path: str, report: _Report) -> Any:
    try:
        return _resolve(parent[key], path, report)
    except MissingMandatoryValue:
        report.faults.append(f"{path} must be set: it has no default.\n  Write {path}=…")
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        if found := re.search(r"Environment variable '(\w+)' not found", reason):
            name = found.group(1)
            reason = (
                f"the environment variable {name} is not set.\n  Set it, or give a default: {path}=${{oc.env:{name},…}}"
            )
        elif found := re.search(r"Interpolation key '([^']+)' not found", reason):
            reason = (
                f"there is no key '{found.group(1)}'.\n  ${{…}} takes the full name of another key: ${{trainer.seed}}"
            )
        elif found := re.search(r"Unsupported interpolation type (\S+)", reason):
            reason = f"there is no resolver '{found.group(1)}'.\n  ${{oc.env:NAME}} reads the environment, ${{KEY}} another key."
        report.faults.append(f"{path} cannot be resolved: {reason.rstrip('.') if reason.endswith('.') else reason}.")
    return None


def _choice(group: str, node: Any, choice: Any, report: _Report) -> Any:
    """A group of which one plugin is chosen."""
    if node is None or node == {}:
        report.faults.append(f"{group} is not chosen. Write {group}=NAME (dumbo --help lists the names).")
        return None
    if isinstance(choice, list | tuple) or (isinstance(choice, str) and choice.startswith("[")):
        report.faults.append(
            f"{group} takes one choice, got the list {choice}.\n  Write {group}={_first(choice)}"
            + (
                "."
                if group != "dataset"
                else "; several data files go into one: dataset=files dataset.path=[a.jsonl,b.jsonl]."
            )
        )
        return None
    if isinstance(node, str):
        report.faults.append(
            f"{group} is the text '{node}' where its keys should be. In a YAML file a choice is made in the defaults "
            f"list:\n  defaults:\n    - override /{group}: {node}"
        )
        return None
    return _build(group, node, GROUPS[group], report)


def _first(choice: Any) -> str:
    return str(choice).strip("[]").split(",")[0].strip(" '\"") or "NAME"


def _list_group(group: str, node: Any, report: _Report) -> dict[str, Any]:
    """A group that takes a list: every key is one plugin's node."""
    if node is None:
        node = {}
    if not isinstance(node, Mapping):
        report.faults.append(
            f"{group} is {node!r} where a list of choices should be.\n  Write {group}=[NAME,…] on the command line, or in "
            f"a YAML file:\n  defaults:\n    - override /{group}: [NAME, …]"
        )
        return {}
    if "_target_" in node:
        report.faults.append(
            f"A choice of {group} merged its keys straight into '{group}': its YAML file lacks the first line\n"
            f"  # @package {group}.NAME"
        )
        return {}
    return {str(name): _build(f"{group}.{name}", child, GROUPS[group], report) for name, child in node.items()}


def _build(path: str, node: Any, methods: Sequence[str], report: _Report) -> Any:
    """The plugin of one node; None, and faults in the report, when the node does not bind."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        group, _, name = path.partition(".")
        if node is not None and not isinstance(node, Mapping):
            report.faults.append(
                f"{path} is {_shown(node)} where its keys should be.\n"
                f"  Set them one by one: {path}.KEY=… (dumbo --info {group} lists them)."
            )
            return None
        hint = (
            f"{group}={name} chooses it"
            if name and isinstance(node, Mapping)
            else f"{group}=NAME chooses one (dumbo --help lists them)"
        )
        listed = f"{group}=[…,{name}]" if group in LIST_GROUPS and name else None
        report.faults.append(
            f"{path} has no _target_: nothing of that name was chosen.\n  "
            + (f"{listed} chooses it." if listed else f"{hint}.")
        )
        return None
    try:
        cls = resolve_class(node["_target_"], methods, report.config_dirs)
    except UserError as error:
        report.faults.append(f"{path}: {error}")
        return None
    before = len(report.faults)
    arguments = {str(key): value for key, value in node.items() if key not in ("_target_", "_convert_")}
    unbuilt = set()
    for key, value in arguments.items():
        so_far = len(report.faults)
        arguments[key] = _nested(f"{path}.{key}", value, report)
        if len(report.faults) > so_far:
            unbuilt.add(key)
    _bind(path, cls, arguments, report, unbuilt)
    if len(report.faults) > before:
        return None
    return _construct(path, cls, arguments, report)


def _nested(path: str, value: Any, report: _Report) -> Any:
    """Builds classes named inside a plugin's node (`model.tokenizer`), to any depth."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return _build(path, value, (), report)
        return {key: _nested(f"{path}.{key}", child, report) for key, child in value.items()}
    if isinstance(value, list):
        return [_nested(f"{path}.{index}", child, report) for index, child in enumerate(value)]
    return value


def _bind(path: str, cls: type, arguments: Mapping[str, Any], report: _Report, unbuilt: Collection[str]) -> None:
    """Unknown keys, missing keys, and values that do not fit their annotation (those of `unbuilt` have faults already)."""
    parameters = inspect.signature(cls).parameters
    hints = _hints(cls)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    for key, value in arguments.items():
        if key not in named and not takes_any:
            report.faults.append(unknown_key(path, key, named))
        elif key in hints and key not in unbuilt and (wanted := misfit(value, hints[key])):
            report.faults.append(_wrong_type(f"{path}.{key}", wanted, value, hints[key], _default(parameters[key])))
    for name in named:
        if name not in arguments and parameters[name].default is inspect.Parameter.empty:
            report.faults.append(f"{path}.{name} must be set: it has no default.\n  Write {path}.{name}=…")


def unknown_key(path: str, key: str, valid: Sequence[str]) -> str:
    """The fault for a key that a node does not have."""
    near = nearest(key, valid)
    prefix = f"{path}." if path else ""
    hint = f" Did you mean {prefix}{near}?" if near else ""
    group = path.split(".")[0] if path else ""
    more = f" (dumbo --info {group})" if group in GROUPS else ""
    if not near and path in GROUPS and path not in LIST_GROUPS and (others := _choices_with(path, key)):
        known = [name for name in ("files", "pretrained", "jinja") if name in others] or others
        hint = f" {path}={known[0]} has one: {path}={known[0]} {path}.{key}=…"
    if not valid:
        return f"{path} has no keys at all, and so no '{key}'.{hint}"
    return f"{path or 'The config'} has no key '{key}'.{hint}\n  keys{f' of {path}' if path else ''}: {', '.join(valid)}{more}"


def _choices_with(group: str, key: str) -> list[str]:
    """Choices of a group whose YAML has a key."""
    from dumbo.search_path import files_of

    found = [name for name, file in files_of(group).items() if re.search(rf"(?m)^{key}:", file.read_text("utf-8"))]
    return sorted(found)


def _hints(cls: type) -> dict[str, Any]:
    """The annotations of the constructor's parameters (a dataclass: of its fields), those that can be evaluated."""
    source: Any = cls if hasattr(cls, "__dataclass_fields__") else cls.__init__  # type: ignore[misc]
    try:
        return typing.get_type_hints(source)
    except NameError:  # some name exists for type checkers only: judge the others
        names = vars(sys.modules[cls.__module__])
        found = {}
        for name, annotation in inspect.get_annotations(source).items():
            with contextlib.suppress(NameError):
                found[name] = eval(annotation, names) if isinstance(annotation, str) else annotation
        return found


def _construct(path: str, cls: type, arguments: Mapping[str, Any], report: _Report) -> Any:
    try:
        return cls(**arguments)
    except (ValueError, TypeError) as error:
        report.faults.append(_named(path, str(error), arguments))
    return None


def _named(path: str, text: str, keys: Collection[str]) -> str:
    """A plugin's own complaint under the full name of what it complains of."""
    if text.startswith(f"{path}."):
        return text
    key = text.split(" ")[0].split(".")[0]
    return f"{path}.{text}" if path and key in keys else f"{path}: {text}" if path else text


def _section(path: str, cls: type, node: Any, report: _Report) -> Any:
    """Options that are no plugin: typed by their dataclass."""
    if node is not None and not isinstance(node, Mapping):
        report.faults.append(
            f"{path} must be a mapping with the keys {', '.join(f.name for f in fields(cls))}, got {_shown(node)}."
        )
        return None
    before = len(report.faults)
    arguments = {str(key): value for key, value in (node or {}).items()}
    hints = _hints(cls)
    for key, value in arguments.items():
        name = f"{path}.{key}" if path else key
        if key not in hints:
            valid = list(hints) if path else [*GROUPS, *SECTIONS, *hints]
            report.faults.append(unknown_key(path, key, valid))
        elif wanted := misfit(value, hints[key]):
            default = _default(inspect.signature(cls).parameters[key])
            report.faults.append(_wrong_type(name, wanted, value, hints[key], default))
    if len(report.faults) > before:
        return None
    return _construct(path, cls, arguments, report)


def _wrong_type(name: str, wanted: str, value: Any, annotation: Any, default: Any) -> str:
    """The fault for a value that does not fit, with what to write: a near option, a rounded number, the default."""
    text = f"{name} must be {wanted}, got {_shown(value)}."
    options = literals(annotation)
    if options and isinstance(value, str) and (near := nearest(value, options)):
        return f"{text}\n  Did you mean {name}={near}?"
    if isinstance(value, float) and value.is_integer() and "whole number" in wanted:
        return f"{text}\n  Write {name}={int(value)}"
    if isinstance(annotation, type) and is_dataclass(annotation):
        return f"{text}\n  Set its keys one by one: {name}.{next(iter(annotation.__dataclass_fields__))}=…"
    if isinstance(value, str | int | float) and "a list of" in wanted:
        return f"{text}\n  Write {name}=[{_plain(value)}]"
    if default is inspect.Parameter.empty or isinstance(default, list | dict):
        return f"{text}\n  Write {name}=…, or leave it out."
    return f"{text}\n  Its default is {name}={_plain(default)}"


def _default(parameter: inspect.Parameter) -> Any:
    return parameter.default if type(parameter.default).__module__ == "builtins" else inspect.Parameter.empty


def _plain(value: Any) -> str:
    from dumbo.override_text import value_text

    return value_text(value)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"the text '{value}'"
    if isinstance(value, list):
        return f"the list {value}"
    return repr(value)


def _conflicts(patches: Mapping[str, Any]) -> list[str]:
    """Pairs of chosen patches that one of the two says cannot go together."""
    faults, seen = [], set()
    for name, patch in patches.items():
        for other in getattr(patch, "conflicts", ()):
            pair = frozenset((name, other))
            if other in patches and pair not in seen:
                seen.add(pair)
                faults.append(
                    f"patch.{name} and patch.{other} cannot be used together.\n  Leave one out: patch=[{_without(patches, other)}]"
                )
    return faults


def _fitted(plugins: Plugins) -> Plugins:
    """`launch` may adapt itself to the batch, where the choice is its own."""
    fit = getattr(plugins.launch, "fitting", None)
    if not callable(fit):
        return plugins
    return replace(plugins, launch=fit(lambda ranks: not _batch(replace(plugins, launch=_Ranks(ranks)))))


@dataclass(frozen=True)
class _Ranks:
    ranks: int


def _batch(plugins: Plugins) -> list[str]:
    """The batch arithmetic, where trainer and launch have one."""
    derive = getattr(plugins.trainer, "batch", None)
    if not callable(derive):
        return []
    try:
        derive(getattr(plugins.launch, "ranks", 1))
    except UserError as error:
        return [str(error)]
    return []


def _without(patches: Mapping[str, Any], name: str) -> str:
    return ",".join(other for other in patches if other != name)


def _all(plugins: Plugins) -> list[tuple[str, Any]]:
    named = [(group, getattr(plugins, group)) for group in ("model", "dataset", "formatter", "trainer", "launch")]
    named += [(f"patch.{name}", patch) for name, patch in plugins.patches.items()]
    return named + [(f"tracker.{name}", tracker) for name, tracker in plugins.trackers.items()]
