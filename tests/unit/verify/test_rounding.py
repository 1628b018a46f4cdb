"""The rounding of bf16 as measured on a model, and what a first batch's loss may be apart by in bf16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import documents, model_of

from dumbo.verify.rounding import error_of_mean, in_float32, of_mean_loss
from dumbo.verify.unpatched import OnDevice, sum_of_losses


@pytest.fixture(scope="module")
def rows(data: Path) -> list[Any]:
    return [(ids.astype(np.int64), trained) for ids, trained in documents(data, 6, longest=60)]


def by_hand(model: Any, rows: list[Any]) -> list[torch.Tensor]:
    """Losses of the trained tokens of each row."""
    found = []
    for ids, trained in rows:
        tokens = torch.from_numpy(ids)
        with torch.no_grad():
            logits = model(input_ids=tokens[None]).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
        found.append(losses[torch.from_numpy(trained[1:])].double())
    return found


def test_losses_of_documents_are_those_of_their_trained_tokens(rows: list[Any]) -> None:
    model = model_of().eval()
    wanted = torch.cat(by_hand(model, rows))
    assert float(sum_of_losses(OnDevice(model), rows, bf16=False)) == pytest.approx(float(wanted.sum()), rel=1e-6)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_the_error_is_measured_against_float32(weights: torch.dtype, rows: list[Any]) -> None:
    """By hand: another model with the same weights in float32, errors of tokens and of whole documents."""
    model = model_of().to(weights).eval()
    wide = model_of().to(weights).float().eval()
    exact = by_hand(wide, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        errors = [a - b for a, b in zip(by_hand(model, rows), exact, strict=True)]
    tokens = sum(map(len, errors))
    each = float(torch.cat(errors).square().sum()) ** 0.5 / tokens
    together = float(torch.stack([error.sum() for error in errors]).square().sum()) ** 0.5 / tokens
    found = error_of_mean(OnDevice(model), rows, 0.0)
    assert found == pytest.approx(max(each, together), rel=1e-4)
    assert 1e-6 < found < 1e-2


def test_weights_are_wide_for_a_moment_only() -> None:
    model = model_of(tie_word_embeddings=True).bfloat16()
    before = dict(model.named_parameters())
    seen: list[torch.dtype] = []
    model.model.layers[1].mlp.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    with in_float32(model):
        assert model(input_ids=torch.arange(9)[None]).logits.dtype == torch.float32
        assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert seen == [torch.float32]
    assert model(input_ids=torch.arange(9)[None]).logits.dtype == torch.bfloat16
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, given: (given[0][..., :3],))
    with pytest.raises(RuntimeError), in_float32(model):
        model(input_ids=torch.arange(9)[None])
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


def test_a_model_that_cannot_is_said(rows: list[Any]) -> None:
    model = model_of().bfloat16()

    def only_half(module: Any, given: Any) -> None:
        if given[0].dtype == torch.float32:
            raise RuntimeError("FlashAttention only supports fp16 and bf16")

    model.model.layers[0].mlp.register_forward_pre_hook(only_half)
    assert error_of_mean(OnDevice(model), rows, 0.0) is None


def test_a_percent_of_a_loss_is_more_than_bf16_is_off() -> None:
    """Of the embedded default's first batch: 102 tokens, loss 6.18, seen 2e-4 from float32; the bound alone allows 0.17."""
    measured = of_mean_loss(torch.bfloat16, 2, 102, 6.18, 2e-4, room=4)
    assert measured.value == pytest.approx(4 * 2**0.5 * 2e-4, rel=0.05)
    assert "4 x sqrt(2) x 2.0e-04, which is how far bfloat16 is from float32" in measured.source
    assert of_mean_loss(torch.bfloat16, 2, 102, 6.18, None, room=4).value > 0.0618 > 20 * measured.value
    exact = of_mean_loss(torch.float32, 2, 102, 6.18, None)
    assert exact.value == pytest.approx(6.18 * 4 * 2**-23 * 5**0.5 * (1 + 102**-0.5), rel=1e-6)
