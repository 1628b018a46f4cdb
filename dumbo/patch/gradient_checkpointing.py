"""Keep only each layer's input in the forward pass and compute the rest again in the backward (Chen et al. 2016,
arXiv:1604.06174): activations cost one layer instead of all, a step about a third more time.

Pipeline: load -> patch (stage MEMORY, after adapters: it wraps the layers they are in) -> train.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dumbo.errors import UserError
from dumbo.interfaces import Stage
from dumbo.patch.modules import base_of
from dumbo.trainer.host_memory import give_back_what_is_freed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class GradientCheckpointing:
    """Switches on transformers' checkpointing of every decoder layer.

    Args:
        use_reentrant: torch's older implementation; the default one works with frozen inputs.
    """

    use_reentrant: bool = False

    stage: ClassVar[Stage] = Stage.MEMORY
    conflicts: ClassVar[tuple[str, ...]] = ()

    def check(self, skeleton: PreTrainedModel) -> None:
        if not skeleton.supports_gradient_checkpointing:
            raise UserError(
                f"patch.gradient_checkpointing: {type(skeleton).__name__} does not support it.\n  Leave it out of patch=[…]."
            )

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        import torch

        base = base_of(model)
        self.check(base)
        if model.device.type == "cpu" and not torch.cuda.is_available():
            give_back_what_is_freed()  # else a CPU's memory stays as full as without checkpointing
        arguments = {"use_reentrant": self.use_reentrant}
        if hasattr(base, "activation_checkpointing_enable"):  # the name since transformers 5.2x
            base.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)
        else:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)
        if self.use_reentrant and any(not p.requires_grad for p in model.parameters()):
            base.enable_input_require_grads()
        self.evidence(model)
        return model

    def evidence(self, model: PreTrainedModel) -> str:
        layers = sum(
            bool(getattr(module, "gradient_checkpointing", False))
            for module in model.modules()
            if hasattr(module, "_gradient_checkpointing_func")
        )
        if layers == 0:
            raise RuntimeError(f"gradient checkpointing did not take on {type(model).__name__}")
        return f"{layers} modules recomputed in the backward pass"
