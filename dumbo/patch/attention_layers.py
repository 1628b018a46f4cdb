"""The layers whose attention a patch can have computed by a certain kernel: finding, refusing and marking them.

What is computed in them is decided by `trainer/attention.py` for each batch, from the mark.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError
from dumbo.patch.modules import base_of

if TYPE_CHECKING:
    from torch import nn

OLDEST_GPU = (8, 0)
"""Compute capability with bf16 matrix products, which both kernels need."""


def attention_layers(model: Any) -> list[Any]:
    """Those of a model, within peft's wrapper or not."""
    return list(calling(base_of(model)))


def heads_of(model: Any) -> Counter[tuple[int, int, int, int | None]]:
    """(heads, key-value heads, width, window or None) -> how many layers attend so."""
    config = base_of(model).config.get_text_config()
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    return Counter((heads, shared, layer.head_dim, window_of(layer, config)) for layer in attention_layers(model))


def window_of(layer: Any, config: Any) -> int | None:
    """Tokens that one of an attention module's may look back to: its own number, or the config's where its forward pass reads that
    (Mistral, Phi-3, Starcoder2; not PhiMoE, which has one too).
    """
    kinds = dict(enumerate(getattr(config, "layer_types", None) or ()))
    if kinds.get(layer.layer_idx) == "full_attention":  # Exaone 4 has the number in all layers
        return None
    if hasattr(layer, "sliding_window"):
        return layer.sliding_window
    reads = "sliding_window" in inspect.getsource(type(layer).forward)
    return getattr(config, "sliding_window", None) if reads else None


def no_gpu_for_it(lacking: str) -> str | None:
    """Why no GPU here has kernels for bf16.

    Args:
        lacking: what an older one does not have.
    """
    import torch

    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.cuda.get_device_capability() < OLDEST_GPU:
        return f"{torch.cuda.get_device_name()} has no {lacking}"
    return None


def need_swappable(name: str, model: Any, takes: Callable[[int], bool], kernels: str) -> None:
    """Refuses a model whose attention cannot be the kernel's.

    Args:
        name: of the patch, for the errors.
        takes: whether the kernel takes heads of a width.
        kernels: which widths those are, in words.

    Raises:
        UserError: the model has an attention of its own, dropout in it, or heads of another width.
    """
    base: Any = base_of(model)
    layers, fault = attention_layers(base), None
    widths = {getattr(layer, "head_dim", None) for layer in layers}
    strange = [
        f"{width} wide" if width else "of a width that it does not name"
        for width in widths
        if not width or not takes(width)
    ]
    if not layers or not base._can_set_attn_implementation():
        fault = "an attention of its own."
    elif getattr(base.config.get_text_config(), "attention_dropout", 0.0):
        fault = "attention dropout, which its kernels do not do."
    elif strange:
        fault = f"heads {', '.join(strange)}; {kernels}."
    if fault is not None:
        raise UserError(f"patch.{name}: {type(base).__name__} has {fault}\n  Leave {name} out of patch=[…]")


def mark(model: Any, kernel: str) -> None:
    """Packs of these layers are meant for `kernel`: "tiles" take them from "varlen", which would have them otherwise."""
    from dumbo.trainer.attention import KERNEL

    for layer in attention_layers(model):
        setattr(layer, KERNEL, kernel)


def marked(model: Any, kernel: str) -> int:
    """How many are."""
    from dumbo.trainer.attention import KERNEL

    return sum(getattr(layer, KERNEL, None) == kernel for layer in attention_layers(model))


def calling(model: nn.Module) -> Iterator[Any]:
    """The modules within one that call transformers' attention functions."""
    return (module for module in model.modules() if hasattr(module, "is_causal") and hasattr(module, "layer_idx"))
