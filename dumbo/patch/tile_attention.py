"""Attention over packs in our own kernels (`trainer/tiles.py`): on documents of 250 tokens over twice as fast as torch's.

Pipeline: load -> patch (stage KERNELS: attention modules are marked) -> train. What is computed in them is decided by
`trainer/attention.py` for each batch: packs on one token axis in bf16 or fp16; all else stays as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dumbo.errors import UserError
from dumbo.interfaces import Stage
from dumbo.patch.attention_layers import mark, marked, need_swappable
from dumbo.patch.compile import Compile
from dumbo.patch.modules import base_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OLDEST_GPU = (8, 0)
"""Compute capability with bf16 matrix products."""


@dataclass(frozen=True, kw_only=True)
class TileAttention:
    """Kernels for packs of short documents. Needs a CUDA device (Ampere or newer) and Triton; elsewhere it is left out,
    and that is said.

    Args:
        required: a machine that cannot run it is an error.

    Raises:
        UserError: heads of another width than the kernels are made for; attention dropout; an attention of the model's own.
    """

    required: bool = False

    stage: ClassVar[Stage] = Stage.KERNELS
    conflicts: ClassVar[tuple[str, ...]] = ("varlen",)

    def unavailable(self) -> str | None:
        import torch

        if not torch.cuda.is_available():
            return "no CUDA device"
        if torch.cuda.get_device_capability() < OLDEST_GPU:
            return f"{torch.cuda.get_device_name()} has no bf16 matrix products"
        return Compile().unavailable()  # Triton, and what it builds kernels with

    def check(self, skeleton: PreTrainedModel) -> None:
        from dumbo.trainer.tiles import WIDTHS

        layers = need_swappable("tile_attention", skeleton)
        strange = {getattr(layer, "head_dim", None) for layer in layers} - {*WIDTHS}
        if strange:
            said = ", ".join(f"{width} wide" if width else "of a width that it does not name" for width in strange)
            raise UserError(
                f"patch.tile_attention: {type(base_of(skeleton)).__name__} has heads {said}; its kernels are made for "
                f"{', '.join(map(str, WIDTHS))}.\n  Leave tile_attention out of patch=[…]"
            )

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        self.check(model)
        mark(model, "tiles")
        return model

    def evidence(self, model: PreTrainedModel) -> str:
        return f"{marked(model, 'tiles')} attention layers, for packs in bf16 or fp16"
