"""A node of the config -> the object it stands for: bound to the constructor's signature and types, then built.

Step of check.py. Unknown keys, missing keys and values that do not fit their annotation go into the report; the
judgement of a single value is conform.py's, the words are faults.py's.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from dumbo.allow_list import resolve_class
from dumbo.conform import misfit
from dumbo.errors import UserError
from dumbo.faults import Report, own_complaint, shown, unknown_key, wrong_type
from dumbo.groups import GROUPS, LIST_GROUPS
from dumbo.options import SECTIONS


def build(path: str, node: Any, methods: Sequence[str], report: Report) -> Any:
    """The plugin of one node; None, and faults in the report, when the node does not bind."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        group, _, name = path.partition(".")
        if node is not None and not isinstance(node, Mapping):
            report.faults.append(
                f"{path} is {shown(node)} where its keys should be.\n"
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


def _nested(path: str, value: Any, report: Report) -> Any:
    """Builds classes named inside a plugin's node (`model.tokenizer`), to any depth."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return build(path, value, (), report)
        return {key: _nested(f"{path}.{key}", child, report) for key, child in value.items()}
    if isinstance(value, list):
        return [_nested(f"{path}.{index}", child, report) for index, child in enumerate(value)]
    return value


def section(path: str, cls: type, node: Any, report: Report) -> Any:
    """Options that are no plugin: typed by their dataclass."""
    if node is not None and not isinstance(node, Mapping):
        report.faults.append(
            f"{path} must be a mapping with the keys {', '.join(f.name for f in fields(cls))}, got {shown(node)}."
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
        elif is_dataclass(hints[key]):
            arguments[key] = section(name, hints[key], value, report)
        elif wanted := misfit(value, hints[key]):
            default = _default(inspect.signature(cls).parameters[key])
            report.faults.append(wrong_type(name, wanted, value, hints[key], default))
    if len(report.faults) > before:
        return None
    return _construct(path, cls, arguments, report)


def _bind(path: str, cls: type, arguments: Mapping[str, Any], report: Report, unbuilt: Collection[str]) -> None:
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
            report.faults.append(wrong_type(f"{path}.{key}", wanted, value, hints[key], _default(parameters[key])))
    for name in named:
        if name not in arguments and parameters[name].default is inspect.Parameter.empty:
            report.faults.append(f"{path}.{name} must be set: it has no default.\n  Write {path}.{name}=…")


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


def _default(parameter: inspect.Parameter) -> Any:
    return parameter.default if type(parameter.default).__module__ == "builtins" else inspect.Parameter.empty


def _construct(path: str, cls: type, arguments: Mapping[str, Any], report: Report) -> Any:
    try:
        return cls(**arguments)
    except (ValueError, TypeError) as error:
        report.faults.append(own_complaint(path, str(error), arguments))
    return None
