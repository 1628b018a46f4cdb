"""Keep only each layer's input in the forward pass and compute the rest again in the backward (Chen et al. 2016,
arXiv:1604.06174): activations cost one layer instead of all, a step about a third more time. Of some layers only, where memory
is left: each layer that keeps what it computed saves its part of that time.

Pipeline: load -> patch (stage MEMORY, after adapters: it wraps the layers they are in) -> train.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dumbo.errors import UserError
from dumbo.interfaces import Stage
from dumbo.patch.compile import decoder_layers
from dumbo.patch.modules import base_of
from dumbo.trainer.host_memory import give_back_what_is_freed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYERS = "patch.gradient_checkpointing.layers"


@dataclass(frozen=True, kw_only=True)
class GradientCheckpointing:
    """Switches on transformers' checkpointing of decoder layers.

    Args:
        layers: how many, the first ones: the last keep what they computed, and have given it back when the first are
            computed again. Or their numbers, from 0, as a list. null: all.
        use_reentrant: torch's older implementation; the default one works with frozen inputs.

    Raises:
        UserError: there are not so many layers, or the model has no checkpointing layer by layer.
    """

    layers: int | list[int] | None = None
    use_reentrant: bool = False

    stage: ClassVar[Stage] = Stage.MEMORY
    conflicts: ClassVar[tuple[str, ...]] = ()

    def check(self, skeleton: PreTrainedModel) -> None:
        if not skeleton.supports_gradient_checkpointing:
            raise UserError(
                f"patch.gradient_checkpointing: {type(skeleton).__name__} does not support it.\n  Leave it out of patch=[…]."
            )
        self._chosen(skeleton)

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
        if self.layers is not None:
            chosen = self._chosen(base)
            for number, layer in enumerate(decoder_layers(base, LAYERS)):
                switched: Any = layer
                switched.gradient_checkpointing = number in chosen
        self.evidence(model)
        return model

    def evidence(self, model: PreTrainedModel) -> str:
        from transformers.modeling_layers import GradientCheckpointingLayer

        if self.layers is not None:
            layers = decoder_layers(model, LAYERS)
            found = {number for number, layer in enumerate(layers) if getattr(layer, "gradient_checkpointing", False)}
            if found != self._chosen(model):
                raise RuntimeError(f"gradient checkpointing took on layers {sorted(found)} of {type(model).__name__}")
            return f"{len(found)} of {len(layers)} layers recomputed in the backward pass"
        count = sum(
            bool(getattr(module, "gradient_checkpointing", False))
            for module in model.modules()
            if hasattr(module, "_gradient_checkpointing_func")
        )
        if count == 0:
            raise RuntimeError(f"gradient checkpointing did not take on {type(model).__name__}")
        if (those := [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]) and all(
            layer.gradient_checkpointing for layer in those
        ):
            return f"all {len(those)} layers recomputed in the backward pass"
        return f"{count} modules recomputed in the backward pass"

    def _chosen(self, model: PreTrainedModel) -> set[int]:
        """Numbers of the layers that are computed again, where not all are."""
        if self.layers is None:
            return set()
        layers = decoder_layers(model, LAYERS)
        if not all(hasattr(layer, "gradient_checkpointing") for layer in layers):
            raise UserError(f"{LAYERS}: {type(model).__name__} can only do all of them.\n  Leave it out")
        chosen = set(range(self.layers)) if isinstance(self.layers, int) else set(self.layers)
        if not chosen or not chosen <= set(range(len(layers))):
            raise UserError(
                f"{LAYERS}={self.layers}: the model has {len(layers)} layers.\n"
                f"  Write how many, 1 to {len(layers)}, or a list of their numbers, 0 to {len(layers) - 1}"
            )
        return chosen
