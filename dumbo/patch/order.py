"""In which order patches are applied, and what each of them asks of the loader.

The order comes from each patch's stage (LOAD < KERNELS < ADAPTER < MEMORY < COMPILE), not from how it was typed:
Liger before LoRA gives its kernels to the base layers, the other way round it would not find them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dumbo.errors import UserError
from dumbo.interfaces import Patch, Stage
from dumbo.patch.put_back import put_back


def forget_earlier() -> None:
    """What patches of an earlier run in this process replaced for all models is as it was."""
    put_back()


def in_order(patches: Mapping[str, Patch]) -> dict[str, Patch]:
    """The patches, first to apply first; those of one stage by name."""
    return dict(sorted(patches.items(), key=lambda item: (item[1].stage, item[0])))


def why_unavailable(name: str, patch: Patch) -> str | None:
    """Why this machine cannot run a patch; None when it can.

    Raises:
        UserError: it cannot, and `patch.NAME.required=true` says that it must.
    """
    ask = getattr(patch, "unavailable", None)
    reason = ask() if ask is not None else None
    if reason is not None and getattr(patch, "required", False):
        raise UserError(
            f"patch.{name} is required and cannot run here: {reason}.\n  Leave patch.{name}.required out to go on without it."
        )
    return reason


def load_kwargs(patches: Mapping[str, Patch]) -> dict[str, Any]:
    """What the patches want passed to `from_pretrained`, together.

    Raises:
        UserError: two patches want different values for one argument.
    """
    merged: dict[str, Any] = {}
    by: dict[str, str] = {}
    for name, patch in patches.items():
        for key, value in (patch.load_kwargs() if hasattr(patch, "load_kwargs") else {}).items():
            if key in merged and merged[key] != value:
                raise UserError(
                    f"patch.{by[key]} and patch.{name} ask for different {key}: {merged[key]} and {value}. Leave one out."
                )
            merged[key], by[key] = value, name
    return merged


def freezes_base(patches: Mapping[str, Patch]) -> bool:
    """Whether adapters are trained beside weights that stay as they are."""
    return any(patch.stage == Stage.ADAPTER and getattr(patch, "freezes_base", False) for patch in patches.values())


def check_skeleton(patches: Mapping[str, Patch], loader: Any, tokenizer: Any) -> None:
    """Lets each patch look at the model on the meta device, before any weight is loaded.

    Raises:
        UserError: names of modules, an architecture a patch does not know.
    """
    checks = [patch.check for patch in patches.values() if hasattr(patch, "check")]
    if checks and hasattr(loader, "load_skeleton"):
        skeleton = loader.load_skeleton(tokenizer)
        for check in checks:
            check(skeleton)


def evidence(patch: Patch, model: Any) -> str:
    """What shows that a patch took, for the start panel."""
    return patch.evidence(model) if hasattr(patch, "evidence") else "applied"
