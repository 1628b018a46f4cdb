"""The layers whose attention a patch can have computed by a certain kernel: finding, refusing and marking them.

What is computed in them is decided by `trainer/attention.py` for each batch, from the mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError
from dumbo.patch.modules import base_of

if TYPE_CHECKING:
    from torch import nn


def attention_layers(model: Any) -> list[Any]:
    """The modules that call transformers' attention functions."""
    return list(_calling(base_of(model)))


def need_swappable(name: str, model: Any) -> list[Any]:
    """Those of a model whose attention may be another function; there is at least one, and none draws random numbers.

    Args:
        name: of the patch, for the errors.

    Raises:
        UserError: the model has an attention of its own, or dropout in it.
    """
    base: Any = base_of(model)
    layers = attention_layers(base)
    if not layers or not base._can_set_attn_implementation():
        raise UserError(
            f"patch.{name}: {type(base).__name__} has an attention of its own.\n  Leave {name} out of patch=[…]"
        )
    if getattr(base.config.get_text_config(), "attention_dropout", 0.0):
        raise UserError(
            f"patch.{name}: {type(base).__name__} has attention dropout, which its kernels do not do.\n"
            f"  Leave {name} out of patch=[…]"
        )
    return layers


def mark(model: Any, kernel: str) -> None:
    """Packs of these layers are meant for `kernel`: "tiles" take them from "varlen", which would have them otherwise."""
    from dumbo.trainer.attention import KERNEL

    for layer in attention_layers(model):
        setattr(layer, KERNEL, kernel)


def marked(model: Any, kernel: str) -> int:
    """How many are."""
    from dumbo.trainer.attention import KERNEL

    return sum(getattr(layer, KERNEL, None) == kernel for layer in attention_layers(model))


def _calling(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if hasattr(module, "is_causal") and hasattr(module, "layer_idx"))
