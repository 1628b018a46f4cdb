"""What a choice by memory holds for: the device, the patches, and what of the trainer a micro batch's memory depends on.

They stand beside the choice in run.json (`micro_batch.of`). A resumed run that has others chooses again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dumbo.check import Plugins

OF_TRAINER = ("max_seq_len", "packing", "optimizer", "master_weights", "cuda_graphs")
"""Keys of the trainer."""
PATCH = "patch."


def circumstances(plugins: Plugins) -> dict[str, Any]:
    """Name -> value, as JSON has it. Of a patch a fingerprint of its options: they may hold what is secret."""
    from dumbo.model.dtype import resolved_precision
    from dumbo.outputs.surroundings import hardware

    machine, trainer = hardware(), plugins.trainer
    found = {
        "device": machine.get("gpu", "cpu"),
        "device_memory_gib": machine.get("gpu_memory_gib", machine["memory_gib"]),
        "performance": plugins.options.performance,
        **{name: getattr(trainer, name) for name in OF_TRAINER if hasattr(trainer, name)},
        "precision": resolved_precision(trainer.precision) if hasattr(trainer, "precision") else None,
        **{f"{PATCH}{name}": _fingerprint(patch) for name, patch in plugins.patches.items()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, in words; "" for nothing."""
    if not before:
        return "what it was chosen for is not recorded"
    names = [name for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]
    return ", ".join(_change(name, before.get(name), now.get(name)) for name in names)


def _change(name: str, before: Any, now: Any) -> str:
    if not name.startswith(PATCH):
        return f"{name} was {before}, is {now}"
    return f"{name} " + ("is new" if before is None else "is left out" if now is None else "has other options")


def _fingerprint(patch: Any) -> str:
    options = json.dumps(vars(patch), sort_keys=True, default=str)
    return hashlib.sha256(f"{type(patch).__qualname__} {options}".encode()).hexdigest()[:12]
