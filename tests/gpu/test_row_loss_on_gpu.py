"""On a CUDA device: the kernel's losses and gradients are those of double precision, for any width, cap and dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dumbo.trainer.row_loss import RowLoss

pytestmark = pytest.mark.gpu
ROWS = 40


def reference(logits: torch.Tensor, targets: torch.Tensor, cap: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    own = logits.double().requires_grad_()
    capped = own if cap is None else cap * torch.tanh(own / cap)
    losses = torch.nn.functional.cross_entropy(capped, targets, ignore_index=-100, reduction="none")
    return losses.detach(), torch.autograd.grad(losses.sum(), own)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cap", [None, 5.0, 30.0])
@pytest.mark.parametrize("vocabulary", [300, 512, 16384, 49152, 128257])
def test_losses_and_gradients(vocabulary: int, cap: float | None, dtype: Any) -> None:
    """Losses to 1e-5, gradients to a rounding in their dtype; twice the same bits; ignored rows have none of either.

    exp(x) in float32 is right to |x| roundings of its argument: here |x| is 30 and more, and half of that is allowed, over all.
    Below a dtype's normal numbers roundings are absolute: half precision has many gradients there.
    """
    torch.manual_seed(0)
    logits = (torch.randn(ROWS, vocabulary, device="cuda") * 8).to(dtype)
    targets = torch.randint(0, vocabulary, (ROWS,), device="cuda")
    targets[3], targets[4], targets[5] = -100, 0, vocabulary - 1
    wanted, gradients = reference(logits, targets, cap)
    own, again = logits.clone(), logits.clone()
    losses = RowLoss().rows(own, targets, cap, gradients=True)
    assert torch.equal(RowLoss().rows(again, targets, cap, gradients=True), losses)
    assert torch.equal(again, own)
    assert torch.allclose(losses.double(), wanted, rtol=1e-5, atol=1e-5)
    rounding = torch.finfo(dtype).eps
    assert ((own.double() - gradients).abs() <= rounding * gradients.abs() + 4e-6 + rounding * 1e-3).all()
    own_targets = torch.arange(vocabulary, device="cuda") == targets[:, None]
    others = [tensor.double().masked_fill(own_targets, 0.0) for tensor in (own, gradients)]
    argument = 16 * torch.finfo(torch.float32).eps
    subnormal = torch.finfo(dtype).smallest_normal * rounding * others[1].numel() ** 0.5
    limit = max(rounding, argument) * others[1].norm() + subnormal
    assert (others[0] - others[1]).norm() <= limit, "the small ones too, which are most of them"
    assert losses[3] == 0
    assert (own[3] == 0).all()
    kept = logits.clone()
    assert torch.equal(RowLoss().rows(kept, targets, cap, gradients=False), losses)
    assert torch.equal(kept, logits)


def test_logits_that_are_far_out() -> None:
    """A vocabulary of which all but a few are masked, one logit above all, and what is not finite stays so."""
    logits = torch.full((4, 20_000), -torch.inf, device="cuda")
    logits[0, 19_999], logits[0, 7] = 3.0, 1.0
    logits[1] = 0.0
    logits[1, 5] = 1e4
    logits[2] = torch.nan
    logits[3, 2], logits[3, 3] = torch.inf, 0.0
    targets = torch.tensor([19_999, 5, 0, 3], device="cuda")
    wanted, gradients = reference(logits[:2], targets[:2], None)
    losses = RowLoss().rows(logits, targets, None, gradients=True)
    assert torch.allclose(losses[:2].double(), wanted, atol=1e-6)
    assert torch.allclose(logits[:2].double(), gradients, atol=1e-6)
    assert not torch.isfinite(losses[2:]).any()
