"""Floating-point operations that a training step needs, for MFU; what is computed twice to save memory does not count.

A matrix of N weights takes 2 N a token forward, 2 N for its gradient where it trains, and 2 N for the gradient of what it is
given where something below it trains: 6 N in all of a full fine-tune, 4 N of a frozen weight among adapters. An embedding
that is only looked up takes nothing; of a mixture of experts a token takes those it is sent to. Attention over the
documents' own lengths comes on top: 4 x width x mean context a layer and token, halved for causality, and twice
that backward where something trains in the layer or below it.
Source: Kaplan et al. 2020 (arXiv:2001.08361), Chowdhery et al. 2022 (arXiv:2204.02311, B).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dumbo.patch.modules import base_of
from dumbo.verify.experts import EXPERTS

LAYER = re.compile(r"\blayers\.(\d+)\.")
NOT_USED = ".original_module."
"""What peft keeps beside a copy that trains."""


@dataclass(frozen=True)
class Flops:
    """Of one training step.

    Attributes:
        of_token: for each token, attention's products apart.
        of_square: for each unit of the sum of the squares of the documents' lengths.
    """

    of_token: float
    of_square: float

    def of(self, tokens: int, squares: float) -> float:
        return self.of_token * tokens + self.of_square * squares


def flops_of(model: Any) -> Flops | None:
    """By what trains now; None: experts, of which it is not known how many a token is sent to.

    Parameters are taken to work in the order in which the model has them.
    """
    base = base_of(model)
    config = base.config.get_text_config()
    looked_up = base.get_input_embeddings().weight
    head = base.get_output_embeddings()
    tied = head is not None and head.weight is looked_up
    named = [(name, one) for name, one in model.named_parameters() if NOT_USED not in name]
    used = _share_of_experts(config)
    if used is None and any(".experts." in name for name, _ in named):
        return None
    passes = dict.fromkeys(range(config.num_hidden_layers), 1)
    of_token, below = 0.0, False
    for name, parameter in named:
        its_own = 2.0 * parameter.numel() * (used or 1.0 if ".experts." in name else 1.0)
        if (found := LAYER.search(name)) and (below or parameter.requires_grad):
            passes[int(found[1])] = 3
        if parameter is not looked_up and parameter.ndim > 1 and not name.endswith("bias"):
            of_token += its_own * (1 + parameter.requires_grad + below)
        below = below or parameter.requires_grad
    if tied:  # it works as the head, above everything
        of_token += 2.0 * looked_up.numel() * (1 + looked_up.requires_grad + below)
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return Flops(of_token, 2.0 * width * sum(passes.values()))


def _share_of_experts(config: Any) -> float | None:
    """Of all routed experts those that a token is sent to."""
    counted = next((getattr(config, key) for key in EXPERTS if getattr(config, key, None)), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    return chosen / counted if counted and chosen else None
