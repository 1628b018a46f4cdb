"""Floating-point operations that a training step needs, for MFU; what is computed twice to save memory does not count.

A matrix of N weights takes 2 N a token forward, 2 N for its gradient where it trains, and 2 N for the gradient of what it is
given where something below it trains: 6 N in all of a full fine-tune, 4 N of a frozen weight among adapters. An embedding
that is only looked up takes nothing; of a mixture of experts a token takes those it is sent to. Attention over the
documents' own lengths comes on top: 2 x (width of the keys + width of the values) x mean context a layer and token, halved
for causality, within the layer's window where it has one, and twice that backward where something trains in the layer or
below it.
Source: Kaplan et al. 2020 (arXiv:2001.08361), Chowdhery et al. 2022 (arXiv:2204.02311, B).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dumbo.errors import UserError
from dumbo.patch.attention_layers import calling, window_of
from dumbo.patch.compile import decoder_layers
from dumbo.patch.modules import base_of
from dumbo.verify.experts import EXPERTS

ATTENTION = ("full_attention", "sliding_attention", "attention")
"""Kinds of layers, as configs name them, whose cost is known here."""
LATENT = ("qk_nope_head_dim", "qk_rope_head_dim")
"""The two parts of a key in latent attention (DeepSeek's)."""
ORIGINAL, COPY = ".original_module.", ".modules_to_save."
"""What peft keeps beside a copy that trains, and that copy."""


@dataclass(frozen=True)
class Flops:
    """Of one training step.

    Attributes:
        of_token: for each token, attention's products apart.
        of_square: window, or None for layers without one -> for each unit of the documents' squares in it (`squares`).
    """

    of_token: float
    of_square: Mapping[int | None, float]

    def of(self, lengths: NDArray[np.int64]) -> float:
        """Of documents of these lengths."""
        attention = (times * float(squares(lengths, window).sum()) for window, times in self.of_square.items())
        return self.of_token * float(lengths.sum()) + sum(attention)


def squares(lengths: NDArray[np.int64], window: int | None) -> NDArray[np.float64]:
    """Twice the pairs of a token and one that it looks back to, by document: a square without the strip past the window."""
    whole = lengths.astype(np.float64)
    seen = whole if window is None else np.minimum(whole, window)
    return seen * (2 * whole - seen)


def flops_of(model: Any) -> Flops | None:
    """By what trains now; None: its layers are not found, they have no attention, or of its experts it is not known how many a token
    is sent to.

    Parameters are taken to work in the order in which the model has them.
    """
    base = base_of(model)
    config = base.config.get_text_config()
    try:
        layers = decoder_layers(base)
    except UserError:
        return None
    layer_of = {id(parameter): place for place, layer in enumerate(layers) for parameter in layer.parameters()}
    head = base.get_output_embeddings()
    of_head = _weight(head) if head is not None else None
    used = _used(model, of_head)
    experts = _experts(used, config)
    share = _share_of_experts(config)
    widths = [width for place in range(len(layers)) if (width := _width(config, place)) is not None]
    if len(widths) < len(layers) or (experts and share is None):
        return None
    looked_up = _looked_up(base)
    passes = [1] * len(layers)
    of_token, below = 0.0, False
    for name, parameter in used.items():
        place = layer_of.get(id(parameter))
        if place is not None and (below or parameter.requires_grad):
            passes[place] = 3
        if id(parameter) not in looked_up and parameter.ndim > 1 and not name.endswith("bias"):
            part = share or 1.0 if name in experts else 1.0
            of_token += 2.0 * parameter.numel() * part * (1 + parameter.requires_grad + below)
        below = below or parameter.requires_grad
    if of_head is not None and id(of_head) in looked_up:  # tied: it works as the head, above everything
        of_token += 2.0 * of_head.numel() * (1 + of_head.requires_grad + below)
    of_square: dict[int | None, float] = {}
    for layer, width, times in zip(layers, widths, passes, strict=True):
        window = next((window_of(module, config) for module in calling(layer)), None)
        of_square[window] = of_square.get(window, 0.0) + 2.0 * width * times
    return Flops(of_token, of_square)


def _width(config: Any, place: int) -> float | None:
    """Of a layer's attention, all its heads together, the mean of keys and values; None: it is no such thing."""
    own = config.per_layer_config[place] if getattr(config, "per_layer_attributes", None) else config
    heads: int | None = getattr(own, "num_attention_heads", None)
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if not heads or (kinds and (place >= len(kinds) or kinds[place] not in ATTENTION)):
        return None
    parts: list[int] = [getattr(own, name, None) or 0 for name in LATENT]
    key = sum(parts) if all(parts) else getattr(own, "head_dim", None) or own.hidden_size // heads
    return heads * (key + (getattr(own, "v_head_dim", None) or key)) / 2


def _used(model: Any, of_head: Any) -> dict[str, Any]:
    """Parameters by name, without those in whose place a copy works (of a tied one the head may still have the original)."""
    named = dict(model.named_parameters())
    copied = {name.split(COPY)[0] for name in named if COPY in name}
    return {
        name: one
        for name, one in named.items()
        if one is of_head or ORIGINAL not in name or name.split(ORIGINAL)[0] not in copied
    }


def _looked_up(base: Any) -> set[int]:
    """Tables of which a token takes a row: the input's, and those of positions."""
    from torch import nn

    tables = [module.weight for module in base.modules() if isinstance(module, nn.Embedding)]
    return {id(one) for one in (*tables, _weight(base.get_input_embeddings()))}


def _weight(module: Any) -> Any:
    """What a module works with, which may be a copy in its place; with peft's added tokens it is made anew each time that it is asked
    for, from the largest that it has.
    """
    own = list(module.parameters())
    return next((one for one in own if one is module.weight), max(own, key=lambda one: one.numel()))


def _experts(used: dict[str, Any], config: Any) -> set[str]:
    """Names of the parameters that are one expert's, or those of all in one tensor."""
    amount = _amount_of_experts(config)
    stacked = {name for name, one in used.items() if one.ndim == 3 and amount and one.shape[0] == amount}
    return stacked | {name for name in used if ".experts." in name}


def _amount_of_experts(config: Any) -> int | None:
    return next((amount for key in EXPERTS if (amount := getattr(config, key, None) or 0) > 1), None)


def _share_of_experts(config: Any) -> float | None:
    """Of all routed experts those that a token is sent to."""
    amount, chosen = _amount_of_experts(config), getattr(config, "num_experts_per_tok", None)
    return chosen / amount if amount and chosen else None
