"""The composed config as plain Python: every ${…} replaced by what it refers to.

First step of check.py. A key that is missing, or that refers to what is not there, is a fault with what to write;
so is a number that is none (https://omegaconf.readthedocs.io, "Variable interpolation").
"""

from __future__ import annotations

import math
import re
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dumbo.faults import Report


def resolved(node: Any, path: str, report: Report) -> Any:
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


def _resolve_child(parent: DictConfig | ListConfig, key: Any, path: str, report: Report) -> Any:
    try:
        return resolved(parent[key], path, report)
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
