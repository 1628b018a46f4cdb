"""Fused Triton kernels from Liger (Hsu et al. 2024, arXiv:2410.10989) in place of a model's own modules.

Pipeline: load -> patch (stage KERNELS, before adapters: they wrap what the kernels leave) -> train.
Liger's own dispatcher ignores models and switches it does not know; here the per-model function is called with
the switches it has, and the model is looked at afterwards. It replaces functions and classes of transformers' modules for
the whole process: the next run's start puts them back (`put_back.py`), a reference is computed before it or after that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dumbo.errors import UserError
from dumbo.interfaces import Stage
from dumbo.patch.modules import base_of
from dumbo.patch.put_back import put_back, recorded
from dumbo.suggest import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Liger:
    """Replaces modules with Liger's kernels. Needs a CUDA device; elsewhere it is left out, and that is said.

    Args:
        rope: rotary position embedding.
        rms_norm: RMSNorm.
        swiglu: the gated MLP (GeGLU where the model has that).
        cross_entropy: the loss alone, logits kept. Not together with the next one.
        fused_linear_cross_entropy: output head and loss in one; all logits are never held at once.
        required: a machine that cannot run it is an error.

    Raises:
        UserError: an architecture Liger does not know, or a kernel it has not for this one.
    """

    rope: bool = True
    rms_norm: bool = True
    swiglu: bool = True
    cross_entropy: bool = False
    fused_linear_cross_entropy: bool = True
    required: bool = False

    stage: ClassVar[Stage] = Stage.KERNELS
    conflicts: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.cross_entropy and self.fused_linear_cross_entropy:
            raise UserError(
                "cross_entropy and fused_linear_cross_entropy exclude each other.\n"
                "  Write patch.liger.fused_linear_cross_entropy=false with cross_entropy=true."
            )
        if not any(self._switches().values()):
            raise UserError("all its kernels are switched off: leave liger out of patch=[…].")

    def problems(self) -> Iterable[str]:
        import importlib.util

        if importlib.util.find_spec("liger_kernel") is None and self.required:
            yield "liger-kernel is not installed.\n  pip install liger-kernel"

    def without_smoothing(self) -> str | None:
        """What to write where labels are smoothed, which its fused loss is not asked for here."""
        return "write patch.liger.fused_linear_cross_entropy=false" if self.fused_linear_cross_entropy else None

    def _switches(self) -> dict[str, bool]:
        names = ("rope", "rms_norm", "swiglu", "cross_entropy", "fused_linear_cross_entropy")
        return {name: getattr(self, name) for name in names}

    def unavailable(self) -> str | None:
        """Its kernels run on a GPU only."""
        import importlib.util

        import torch

        if importlib.util.find_spec("liger_kernel") is None:
            return "liger-kernel is not installed"
        return None if torch.cuda.is_available() else "no CUDA device"

    def check(self, skeleton: PreTrainedModel) -> None:
        """Whether Liger knows the architecture and has the kernels asked for; also where it cannot run."""
        import importlib.util

        if importlib.util.find_spec("liger_kernel") is not None:
            self._arguments(skeleton)

    def _arguments(self, model: PreTrainedModel) -> tuple[Callable[..., None], dict[str, bool]]:
        """Liger's function for a model, and all its switches, set as asked."""
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

        kind = model.config.model_type
        if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
            near = did_you_mean(kind, MODEL_TYPE_TO_APPLY_LIGER_FN)
            raise UserError(
                f"patch.liger: Liger has no kernels for the architecture '{kind}'.{near}\n  Leave it out: patch=[…] without liger.\n"
                f"  It knows {', '.join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))}."
            )
        function = MODEL_TYPE_TO_APPLY_LIGER_FN[kind]
        has = [name for name in inspect.signature(function).parameters if name != "model"]
        switches = self._switches()
        if "swiglu" not in has and "geglu" in has:
            switches["geglu"] = switches.pop("swiglu")
        if lacking := [name for name, on in switches.items() if on and name not in has]:
            raise UserError(
                f"patch.liger.{lacking[0]}: Liger has no such kernel for '{kind}' (it has {', '.join(has)}).\n  Write patch.liger.{lacking[0]}=false"
            )
        return function, {name: switches.get(name, False) for name in has}

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        function, switches = self._arguments(model)
        put_back()  # of an earlier run, which may have had other switches
        with recorded(model, "liger_kernel"):
            function(**switches, model=model)
        self.evidence(model)
        return model

    def evidence(self, model: PreTrainedModel) -> str:
        """Counts what Liger replaced, by looking at the model.

        Raises:
            RuntimeError: a kernel that was asked for is nowhere in the model.
        """
        base = base_of(model)
        found = _replaced(base)
        wanted = {name for name, on in self._arguments(base)[1].items() if on}
        seen = {
            "rms_norm": found["norms"],
            "swiglu": found["mlps"],
            "geglu": found["mlps"],
            "fused_linear_cross_entropy": found["loss"],
            "rope": found["rope"],
            "cross_entropy": found["cross_entropy"],
        }
        if absent := [name for name in wanted if seen.get(name) == 0]:
            raise RuntimeError(f"Liger's {', '.join(sorted(absent))} did not take on {type(base).__name__}")
        parts = [f"{found['norms']} norms" * bool(found["norms"]), f"{found['mlps']} MLPs" * bool(found["mlps"])]
        parts += [
            "rope" * bool(found["rope"]),
            "fused loss" * bool(found["loss"]),
            "cross entropy" * bool(found["cross_entropy"]),
        ]
        return "kernels in " + ", ".join(part for part in parts if part)


def _replaced(model: Any) -> dict[str, int]:
    """How many modules of each kind run Liger's code now."""
    import sys

    from torch.nn import functional

    counts = {"norms": 0, "mlps": 0, "loss": int(_is_ligers(model.forward)), "rope": 0}
    counts["cross_entropy"] = int(_is_ligers(functional.cross_entropy))  # Liger replaces torch's own, for the process
    for module in model.modules():
        if module is model or not _is_ligers(module.forward):
            continue
        counts["norms" if "norm" in type(module).__name__.lower() else "mlps"] += 1
    rotary = getattr(sys.modules[type(model).__module__], "apply_rotary_pos_emb", None)
    counts["rope"] = int(_is_ligers(rotary))
    return counts


def _is_ligers(function: Any) -> bool:
    function = getattr(function, "__func__", function)
    return str(getattr(function, "__module__", "")).startswith("liger_kernel")
