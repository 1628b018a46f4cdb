from __future__ import annotations

import copy

import pytest
import torch

from dumbo.errors import UserError
from dumbo.patch.gradient_checkpointing import GradientCheckpointing
from dumbo.patch.lora import LoRA


def run(model, batch) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss, gradients, and the bytes that the forward pass kept for the backward."""
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    model.train()
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch, use_cache=False).loss
    loss.backward()
    return float(loss), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, kept


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_same_numbers_less_kept(lora, reentrant, untied, batch):
    model = LoRA(rank=4, init="random").apply(untied) if lora else untied
    plain = copy.deepcopy(model)
    patched = GradientCheckpointing(use_reentrant=reentrant).apply(model)
    loss, gradients, kept = run(patched, batch)
    loss_plain, gradients_plain, kept_plain = run(plain, batch)
    assert loss == pytest.approx(loss_plain, abs=1e-6)
    assert gradients.keys() == gradients_plain.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, gradients_plain[name], atol=1e-6, rtol=1e-5)
    assert kept < 0.6 * kept_plain, f"{kept:,} of {kept_plain:,} bytes kept"


def test_evidence_counts_layers_and_raises_without(tiny):
    patch = GradientCheckpointing()
    with pytest.raises(RuntimeError, match="did not take"):
        patch.evidence(tiny)
    patch.apply(tiny)
    assert patch.evidence(tiny).split()[0].isdigit()


def test_model_that_does_not_support_it(tiny):
    tiny.supports_gradient_checkpointing = False
    with pytest.raises(UserError, match="does not support it"):
        GradientCheckpointing().check(tiny)
