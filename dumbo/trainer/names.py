"""Names that transformers accepts, read from its source without importing it (that takes seconds).

Only for the early check of a config; TrainingArguments itself judges them again.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path


@functools.cache
def _tree(module: str) -> ast.Module | None:
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / f"{module}.py"
    return ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else None


def _class(module: str, name: str) -> ast.ClassDef | None:
    tree = _tree(module)
    return (
        next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
        if tree
        else None
    )


def _enum_values(module: str, name: str) -> list[str]:
    found = _class(module, name)
    return [
        str(node.value.value)
        for node in (found.body if found else [])
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]


def scheduler_names() -> list[str]:
    """Values of transformers' SchedulerType; empty when its source is laid out otherwise."""
    return _enum_values("trainer_utils", "SchedulerType")


def optimizer_names() -> list[str]:
    """Values of transformers' OptimizerNames."""
    return _enum_values("training_args", "OptimizerNames")


def training_argument_names() -> list[str]:
    """Fields of transformers' TrainingArguments."""
    found = _class("training_args", "TrainingArguments")
    return [
        node.target.id
        for node in (found.body if found else [])
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
