"""What plugins of one experiment must agree on: patches that exclude each other or the trainer's options,
the batch over the ranks.

Last step of check.py, when every plugin by itself is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dumbo.errors import UserError


def conflicts(patches: Mapping[str, Any]) -> list[str]:
    """Pairs of chosen patches that one of the two says cannot go together, or not as they are set."""
    faults, seen = [], set()
    for name, patch in patches.items():
        for other in getattr(patch, "conflicts", ()):
            pair = frozenset((name, other))
            if other in patches and pair not in seen:
                seen.add(pair)
                faults.append(
                    f"patch.{name} and patch.{other} cannot be used together.\n  Leave one out: patch=[{_without(patches, other)}]"
                )
        if (ask := getattr(patch, "conflicts_with", None)) is not None:
            faults += ask({other: one for other, one in patches.items() if other != name})
    return faults


def masters(trainer: Any, patches: Mapping[str, Any]) -> list[str]:
    """Master weights asked for where all that trains is in float32 already."""
    adapters = [name for name, patch in patches.items() if getattr(patch, "trains_in_float32", False)]
    if not adapters or not getattr(trainer, "master_weights", False):
        return []
    return [
        f"trainer.master_weights keeps float32 masters of bf16 weights; what patch.{adapters[0]} trains is in float32 itself.\n"
        "  Leave trainer.master_weights out."
    ]


def smoothing(trainer: Any, patches: Mapping[str, Any]) -> list[str]:
    """Smoothed labels beside a patch whose loss has none, in whose place the model's own would be taken."""
    factor = (getattr(trainer, "extra", None) or {}).get("label_smoothing_factor")
    asks = {name: getattr(patch, "without_smoothing", lambda: None)() for name, patch in patches.items()}
    return [
        f"patch.{name} does not smooth labels: with trainer.extra.label_smoothing_factor={factor} the loss would be taken from all logits.\n"
        f"  {remedy[0].upper()}{remedy[1:]}, or leave label_smoothing_factor out."
        for name, remedy in asks.items()
        if factor and remedy
    ]


def _without(patches: Mapping[str, Any], name: str) -> str:
    return ",".join(other for other in patches if other != name)


def fitted(launch: Any, trainer: Any) -> Any:
    """`launch`, which may adapt itself to the trainer's batch, where the choice is its own."""
    fit = getattr(launch, "fitting", None)
    return fit(lambda ranks: not batch(trainer, _Ranks(ranks))) if callable(fit) else launch


@dataclass(frozen=True)
class _Ranks:
    ranks: int


def batch(trainer: Any, launch: Any) -> list[str]:
    """Faults of the batch arithmetic, where trainer and launch have one."""
    derive = getattr(trainer, "batch", None)
    if not callable(derive):
        return []
    try:
        derive(getattr(launch, "ranks", 1))
    except UserError as error:
        return [str(error)]
    return []
