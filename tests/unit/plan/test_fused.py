"""What compiled layers keep, against layers as written and checkpointed ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dumbo.plan.fused import fused_chunk_loss, keep_as_compiled
from dumbo.plan.ledger import Ledger


def kept(change: Callable[[torch.nn.Module], None] = lambda module: None) -> int:
    """Bytes that a gated MLP of 10 tokens keeps: width 8, inner width 32."""
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

    layer = LlamaMLP(LlamaConfig(hidden_size=8, intermediate_size=32, num_attention_heads=1))
    change(layer)
    with Ledger() as ledger, ledger.making("activations"):
        out = layer(torch.zeros(10, 8, requires_grad=True)).sum()
        held = ledger.held["activations"]
        out.backward()
    return held


def test_matrix_products_are_kept_and_the_rest_is_made_again() -> None:
    token = 4 * 10  # bytes of a number a token
    as_written = kept()
    compiled = kept(keep_as_compiled)
    assert as_written - compiled == 2 * 32 * token  # the activation function's result, and its product with the gate
    assert compiled >= (8 + 2 * 32) * token  # the input, and both inner products


def test_gradients_are_those_of_the_layer() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU(), torch.nn.Linear(4, 4))
    x = torch.randn(3, 4)
    layer(x).sum().backward()
    wanted: Any = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    layer.zero_grad()
    keep_as_compiled(layer)
    layer(x).sum().backward()
    assert all(
        torch.equal(p.grad, grad) for p, grad in zip(layer.parameters(), wanted, strict=True) if p.grad is not None
    )


def test_a_chunk_of_the_loss_has_its_logits_and_their_gradient() -> None:
    head = torch.nn.Linear(8, 1000, bias=False).bfloat16()
    hidden = torch.zeros(10, 8, dtype=torch.bfloat16, requires_grad=True)
    with Ledger() as ledger:
        fused_chunk_loss(head, None, hidden, torch.zeros(10, dtype=torch.long)).backward()
    logits, weights = 2 * 10 * 1000, 2 * 8 * 1000
    assert 2 * logits <= ledger.peak <= 2 * logits + 2 * weights
