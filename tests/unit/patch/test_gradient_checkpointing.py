from __future__ import annotations

import copy

import pytest
import torch

from dumbo.errors import UserError
from dumbo.patch.compile import Compile
from dumbo.patch.fused_lora import FusedLoRA
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
    assert patch.evidence(tiny) == f"all {tiny.config.num_hidden_layers} layers recomputed in the backward pass"


def test_model_that_does_not_support_it(tiny):
    tiny.supports_gradient_checkpointing = False
    with pytest.raises(UserError, match="does not support it"):
        GradientCheckpointing().check(tiny)


@pytest.mark.parametrize(("layers", "computed_again"), [(1, {0}), ([1], {1}), (2, {0, 1})])
def test_of_some_layers(layers, computed_again, untied, batch):
    """The same numbers; each layer that is computed again keeps less."""
    loss_plain, gradients_plain, kept_plain = run(copy.deepcopy(untied), batch)
    _, _, kept_all = run(GradientCheckpointing().apply(copy.deepcopy(untied)), batch)
    patch = GradientCheckpointing(layers=layers)
    patched = patch.apply(untied)
    assert patch.evidence(patched) == f"{len(computed_again)} of 2 layers recomputed in the backward pass"
    assert {n for n, layer in enumerate(patched.model.layers) if layer.gradient_checkpointing} == computed_again
    loss, gradients, kept = run(patched, batch)
    assert loss == pytest.approx(loss_plain, abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, gradients_plain[name], atol=1e-6, rtol=1e-5)
    saved = (kept_plain - kept) / (kept_plain - kept_all)
    assert saved == pytest.approx(len(computed_again) / 2, abs=0.02), f"{saved:.2f} of what all layers save"


def test_evidence_finds_another_choice(tiny):
    patched = GradientCheckpointing(layers=1).apply(tiny)
    with pytest.raises(RuntimeError, match=r"took on layers \[0\]"):
        GradientCheckpointing(layers=[1]).evidence(patched)


@pytest.mark.parametrize("layers", [0, 3, [2], [-1], []])
def test_layers_that_there_are_not(layers, tiny):
    with pytest.raises(UserError, match="the model has 2 layers"):
        GradientCheckpointing(layers=layers).check(tiny)


@pytest.mark.parametrize("layers", [None, 1])
def test_around_compiled_layers(layers, untied, batch):
    """Numbers of the model as written; a checkpointed layer keeps its input and nothing of its graph."""
    model = FusedLoRA().apply(LoRA(rank=4, init="random").apply(untied))
    loss_plain, gradients_plain, _ = run(copy.deepcopy(model), batch)
    _, _, kept_compiled = run(Compile(backend="aot_eager").apply(copy.deepcopy(model)), batch)
    _, _, kept_least = run(GradientCheckpointing().apply(copy.deepcopy(model)), batch)
    patched = Compile(backend="aot_eager").apply(GradientCheckpointing(layers=layers).apply(model))
    loss, gradients, kept = run(patched, batch)
    assert loss == pytest.approx(loss_plain, abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, gradients_plain[name], atol=1e-6, rtol=1e-5)
    wanted = kept_least if layers is None else (kept_least + kept_compiled) / 2
    assert kept == pytest.approx(wanted, rel=0.1), f"{kept_compiled:,} bytes kept without, {kept_least:,} at least"
    assert kept < 0.8 * kept_compiled
    assert GradientCheckpointing(layers=layers).evidence(patched) == (
        "all 2 layers recomputed in the backward pass"
        if layers is None
        else "1 of 2 layers recomputed in the backward pass"
    )
    patched.eval()
    with torch.no_grad():
        assert float(patched(**batch, use_cache=False).loss) == pytest.approx(loss_plain, abs=1e-6)
