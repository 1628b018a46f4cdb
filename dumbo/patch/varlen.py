"""Attention over packs in torch's variable-length kernel by name, instead of ours; FlashAttention 3 or 4 on demand.

Pipeline: load -> patch (stage KERNELS: attention modules are marked) -> train. Packs in bf16 take torch's kernel by
themselves where `tile_attention` has no part (`trainer/varlen.py`). Chosen, it keeps `performance=auto` from adding tiles, says
where it cannot be, and names whose kernel it is: torch can switch the whole process to FlashAttention 3 or 4 (Shah et al. 2024,
arXiv:2407.08608), which are packages of their own; where one is faster than tiles, `performance=auto` chooses it by itself
(`flash_race.py`). That its numbers are right is for the proofs, as with every patch.
A later run in the process starts without. https://docs.pytorch.org/docs/stable/nn.attention.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from dumbo.interfaces import Stage
from dumbo.patch.attention_layers import mark, marked, need_swappable, no_gpu_for_it
from dumbo.patch.put_back import put_back_later

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Varlen:
    """For packs on one token axis in bf16. Needs a CUDA device (Ampere or newer); elsewhere it is left out, and that is said.

    Args:
        flash: whose kernel: "torch", or "FA3" or "FA4", which have to be installed.
        required: a machine that cannot run it is an error.

    Raises:
        UserError: heads of a width that the kernel does not take; attention dropout; an attention of the model's own; torch
            cannot switch to the kernel that was asked for.
    """

    flash: Literal["torch", "FA3", "FA4"] = "torch"
    required: bool = False

    stage: ClassVar[Stage] = Stage.KERNELS
    conflicts: ClassVar[tuple[str, ...]] = ("tile_attention",)

    def unavailable(self) -> str | None:
        from dumbo.trainer import flash

        reason = no_gpu_for_it("flash attention in bf16")
        return reason if reason is not None or self.flash == "torch" else flash.why_not(self.flash)

    def check(self, skeleton: PreTrainedModel) -> None:
        from dumbo.trainer.varlen import WIDEST_HEAD

        need_swappable(
            "varlen",
            skeleton,
            lambda width: width % 8 == 0 and width <= WIDEST_HEAD,
            f"its kernel takes multiples of 8 up to {WIDEST_HEAD}",
        )

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        from dumbo.trainer import flash

        self.check(model)
        mark(model, "varlen")
        flash.switch_back()
        if self.flash != "torch" and model.device.type != "meta":
            flash.switch(self.flash)
            put_back_later(flash.switch_back)
        return model

    def evidence(self, model: PreTrainedModel) -> str:
        from dumbo.trainer import flash

        return f"{marked(model, 'varlen')} attention layers, for packs in bf16 or fp16, by {flash.current()} flash attention"
