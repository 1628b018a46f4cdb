"""Attention over packs in our own kernels (`trainer/tiles.py`): on documents of 250 tokens over twice as fast as torch's.
Long documents go through cuDNN's attention on GPUs where that is faster (`trainer/long_attention.py`).

Pipeline: load -> patch (stage KERNELS: attention modules are marked) -> train. What is computed in them is decided by
`trainer/attention.py` for each batch: packs on one token axis in bf16 or fp16; all else stays as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dumbo.interfaces import Stage
from dumbo.patch.attention_layers import heads_of, mark, marked, need_swappable, no_gpu_for_it
from dumbo.patch.compile import Compile

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class TileAttention:
    """Kernels for packs of documents. Needs a CUDA device (Ampere or newer) and Triton; elsewhere it is left out,
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
        return (
            no_gpu_for_it("bf16 matrix products") or Compile().unavailable()
        )  # Triton, and what it builds kernels with

    def check(self, skeleton: PreTrainedModel) -> None:
        from dumbo.trainer.tiles import WIDTHS

        known = ", ".join(map(str, WIDTHS))
        need_swappable("tile_attention", skeleton, WIDTHS.__contains__, f"its kernels are made for {known}")

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        self.check(model)
        mark(model, "tiles")
        return model

    def evidence(self, model: PreTrainedModel) -> str:
        from dumbo.trainer import cudnn, long_documents

        said = f"{marked(model, 'tiles')} attention layers, for packs in bf16 or fp16"
        if cudnn.lacking() is not None:
            return said
        reason = not_in_cudnn(model)
        long = f"{said}; documents of {long_documents.LONG:,} tokens and more"
        return f"{long} in cuDNN's" if reason is None else f"{long} too ({reason})"


def in_cudnn(model: PreTrainedModel) -> bool:
    """Whether long documents of a model that has been patched go through cuDNN."""
    return marked(model, "tiles") > 0 and not_in_cudnn(model) is None


def not_in_cudnn(model: PreTrainedModel) -> str | None:
    """Why long documents of a model with these heads do not go through cuDNN, in bf16; None where they do in all layers without
    a window.

    Args:
        model: where it lies does not matter; on a GPU that has cuDNN it is tried.
    """
    import torch

    from dumbo.trainer import cudnn

    if (reason := cudnn.lacking()) is not None:
        return reason
    whole = {tuple(heads) for *heads, window in heads_of(model) if window is None}
    if not whole:
        return "all layers have a sliding window"
    device = torch.cuda.current_device()
    found = [cudnn.why_not(*heads, torch.bfloat16, device) for heads in whole]
    return next((reason for reason in found if reason is not None), None)
