"""Attention over packs in torch's variable-length kernel, or in a newer flash attention that torch can switch to.

Pipeline: load -> patch (stage KERNELS: attention modules are marked) -> train. Packs in bf16 take torch's own kernel by
themselves where a GPU has it (`trainer/varlen.py`); this patch says where it cannot be, keeps `tile_attention` out, and
chooses whose kernel it is: torch registers FlashAttention 3 and 4 (Shah et al. 2024, arXiv:2407.08608), which are packages
of their own, and switches the whole process to one (`activate_flash_attention_impl`). A later run in it starts without.
https://docs.pytorch.org/docs/stable/nn.attention.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dumbo.errors import UserError
from dumbo.interfaces import Stage
from dumbo.patch.attention_layers import mark, marked, need_swappable
from dumbo.patch.modules import base_of
from dumbo.patch.put_back import put_back_later

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OLDEST_GPU = (8, 0)
"""Compute capability that flash attention needs."""
TORCHS = "torch"


@dataclass(frozen=True, kw_only=True)
class Varlen:
    """For packs on one token axis in bf16. Needs a CUDA device (Ampere or newer); elsewhere it is left out, and that is said.

    Args:
        flash: whose kernel: "torch", "FA3", "FA4"; "auto": the fastest here of those that are installed.
        required: a machine that cannot run it is an error.

    Raises:
        UserError: heads that are wider than the kernel takes; attention dropout; an attention of the model's own; a kernel
            that was asked for by name and does not compute what torch's does here.
    """

    flash: Literal["auto", "torch", "FA3", "FA4"] = "auto"
    required: bool = False

    stage: ClassVar[Stage] = Stage.KERNELS
    conflicts: ClassVar[tuple[str, ...]] = ("tile_attention",)

    def unavailable(self) -> str | None:
        import torch

        from dumbo.trainer import flash

        if not torch.cuda.is_available():
            return "no CUDA device"
        if torch.cuda.get_device_capability() < OLDEST_GPU:
            return f"{torch.cuda.get_device_name()} has no flash attention in bf16"
        if self.flash not in ("auto", TORCHS) and self.flash not in flash.installed():
            return f"{self.flash} is not installed ({flash.PACKAGES[self.flash]})"
        return None

    def check(self, skeleton: PreTrainedModel) -> None:
        from dumbo.trainer.varlen import WIDEST_HEAD

        layers = need_swappable("varlen", skeleton)
        strange = {getattr(layer, "head_dim", 0) for layer in layers}
        if any(width > WIDEST_HEAD or width % 8 for width in strange):
            raise UserError(
                f"patch.varlen: {type(base_of(skeleton)).__name__} has heads {', '.join(map(str, sorted(strange)))} wide; its kernel "
                f"takes multiples of 8 up to {WIDEST_HEAD}.\n  Leave varlen out of patch=[…]"
            )

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        from dumbo.trainer import flash

        self.check(model)
        mark(model, "varlen")
        base: Any = base_of(model)
        base.dumbo_flash = "torch's own flash attention"
        if self.flash == TORCHS or not (names := flash.installed() if self.flash == "auto" else [self.flash]):
            return model
        tried = flash.tried(names, *_heads(base))
        if self.flash != "auto" and (fault := tried[self.flash].fault):
            raise UserError(f"patch.varlen.flash={self.flash}: {fault}.\n  Write patch.varlen.flash=auto, or torch")
        name = flash.fastest(tried) if self.flash == "auto" else self.flash
        base.dumbo_flash = flash.told(name, tried)
        if name != TORCHS:
            flash.switch(name)
            put_back_later(flash.switch_back)
        return model

    def evidence(self, model: PreTrainedModel) -> str:
        found: Any = base_of(model)
        return f"{marked(model, 'varlen')} attention layers, for packs in bf16 or fp16: {found.dumbo_flash}"


def _heads(base: Any) -> tuple[int, int, int]:
    """(heads, heads of keys, their width)."""
    config = base.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, getattr(config, "num_key_value_heads", None) or heads, width
