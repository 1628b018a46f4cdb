"""LoRA's layers, product and update added in place (`trainer/low_rank.py`): the same numbers, fewer bytes.

Pipeline: load -> patch (stage MEMORY: after lora made the adapters, before layers are compiled) -> train. peft's modules,
names and checkpoints stay as they are; only what a layer computes in its forward pass is written in another order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar

from dumbo.errors import UserError
from dumbo.interfaces import Stage
from dumbo.patch.modules import linear_names, matches

if TYPE_CHECKING:
    from transformers import PreTrainedModel


NOT_DONE = {"dropout": "lora_dropout", "use_dora": "use_dora", "bias": "bias"}
"""Options of `patch.lora`, and their names in an adapter's config."""
ONLY_STORED = ("lora_bias", "target_parameters", "alora_invocation_tokens", "arrow_config", "use_qalora", "use_bdlora",
               "kasa_config", "velora_config", "monteclora_config")  # fmt: skip
"""What an adapter from a disk can have besides, which `patch.lora` has no option for."""
PLAIN: tuple[Any, ...] = (None, False, 0, "none", [])


@dataclass(frozen=True, kw_only=True)
class FusedLoRA:
    """For patch=[…,lora] without dropout, DoRA and trained biases. Runs on a CPU too."""

    stage: ClassVar[Stage] = Stage.MEMORY
    conflicts: ClassVar[tuple[str, ...]] = ()
    only_with: ClassVar[tuple[str, ...]] = ("lora",)

    def conflicts_with(self, others: Mapping[str, Any]) -> Iterable[str]:
        """It needs plain LoRA beside it."""
        lora = others.get("lora")
        if lora is None:
            yield "patch.fused_lora is for the adapters of patch.lora.\n  Write patch=[…,lora,fused_lora], or leave it out"
            return
        stored = _stored(lora)
        for name, value in ((name, getattr(lora, name, None)) for name in NOT_DONE):
            if value not in PLAIN:
                yield (
                    f"patch.fused_lora does not do patch.lora.{name}={value}.\n"
                    f"  Leave patch.lora.{name} out, or leave fused_lora out of patch=[…]"
                )
        for name, value in ((name, stored.get(name)) for name in (*NOT_DONE.values(), *ONLY_STORED)):
            if value not in PLAIN:
                yield (
                    f"patch.fused_lora does not do {name}={value}, which the adapter in patch.lora.path has.\n"
                    "  Leave fused_lora out of patch=[…]"
                )

    def idle_beside(self, lora: Any, skeleton: PreTrainedModel) -> str | None:
        """Why none of a stored adapter's layers is one for it."""
        targets = _stored(lora).get("target_modules")
        if not isinstance(targets, list) or any(
            matches(name, one) for name in linear_names(skeleton) for one in targets
        ):
            return None
        return f"the adapter in patch.lora.path is on no linear layer ({', '.join(sorted(targets)) or 'no module'})"

    def check(self, skeleton: PreTrainedModel) -> None:
        """Whether there are linear layers of torch's own kind (GPT-2 has another)."""
        from torch import nn

        head = skeleton.get_output_embeddings()
        if not any(type(module) is nn.Linear and module is not head for module in skeleton.modules()):
            raise UserError(
                f"patch.fused_lora: {type(skeleton).__name__} has no torch.nn.Linear beside its output head.\n"
                "  Leave fused_lora out of patch=[…]"
            )

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        layers = _plain_layers(model)
        if not layers and hasattr(model, "peft_config"):  # an adapter from a disk
            raise UserError(
                "patch.fused_lora: the adapter is no plain LoRA over a linear layer anywhere.\n"
                "  Leave fused_lora out of patch=[…]"
            )
        for layer in layers:
            layer.forward = MethodType(_fused, layer)
        self.evidence(model)
        return model

    def evidence(self, model: PreTrainedModel) -> str:
        """Counts layers.

        Raises:
            RuntimeError: none took it.
        """
        forwards = [getattr(vars(module).get("forward"), "__func__", None) for module in model.modules()]
        if not (count := forwards.count(_fused)):
            raise RuntimeError(
                f"no adapter of {type(model).__name__} is a plain LoRA over a linear layer without dropout"
            )
        return f"{count} layers add product and update in place"


def _stored(lora: Any) -> dict[str, Any]:
    """The config of the adapter that `patch.lora.path` goes on from."""
    path = getattr(lora, "path", None)
    file = Path(path).expanduser() / "adapter_config.json" if path is not None else None
    if file is None or not file.is_file():  # `LoRA.problems` says so
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _plain_layers(model: Any) -> list[Any]:
    """peft's LoRA layers that are one adapter over a frozen torch.nn.Linear."""
    from peft.tuners.lora.layer import Linear
    from torch import nn

    return [
        module
        for module in model.modules()
        if type(module) is Linear
        and type(module.get_base_layer()) is nn.Linear
        and len(module.lora_A) == 1
        and not module.lora_variant
        and not any(module.lora_bias.values())
        and not any(parameter.requires_grad for parameter in module.get_base_layer().parameters())
        and all(isinstance(dropout, nn.Identity) for dropout in module.lora_dropout.values())
    ]


def _fused(self: Any, x: Any, *arguments: Any, **kwargs: Any) -> Any:
    """peft's own where it does something else: adapters off, merged, named in the call."""
    from dumbo.trainer.low_rank import low_rank_linear

    if self.disable_adapters or self.merged or arguments or kwargs or len(self.active_adapters) != 1:
        return type(self).forward(self, x, *arguments, **kwargs)
    (name,) = self.active_adapters
    base = self.get_base_layer()
    return low_rank_linear(
        x, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
    )  # fmt: skip
