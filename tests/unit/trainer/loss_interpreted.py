"""The kernel of the loss, run by Triton's interpreter on the CPU, against torch in float64.

`test_row_loss.py` runs these in a process of their own: Triton chooses its interpreter when it is imported. The same on a GPU:
tests/gpu/test_row_loss_on_gpu.py, in bfloat16 there alone, which the interpreter cuts where a GPU rounds.
"""

from __future__ import annotations

import os

import pytest
import torch

from dumbo.trainer import row_loss
from dumbo.trainer.chunks import chunk_loss, summed_loss

assert os.environ.get("TRITON_INTERPRET") == "1", "see test_row_loss.py"


def reference(logits: torch.Tensor, targets: torch.Tensor, cap: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    own = logits.double().requires_grad_()
    capped = own if cap is None else cap * torch.tanh(own / cap)
    losses = torch.nn.functional.cross_entropy(capped, targets, ignore_index=-100, reduction="none")
    return losses.detach(), torch.autograd.grad(losses.sum(), own)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("cap", [None, 5.0, 30.0])
@pytest.mark.parametrize(("vocabulary", "block"), [(1000, 256), (512, 512), (300, 512)])
def test_losses_and_gradients(
    vocabulary: int, block: int, cap: float | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a wider tensor, one without a loss, the first and the last token wanted; what lies beside them stays."""
    monkeypatch.setattr(row_loss, "cut", lambda vocabulary: (block, 4))
    torch.manual_seed(0)
    wide = (torch.randn(6, vocabulary + 24) * 8).to(dtype)
    logits = wide[:, :vocabulary]
    if cap is None:
        logits[4, : vocabulary - 2] = -torch.inf  # whole blocks of masked tokens
    targets = torch.randint(0, vocabulary, (6,))
    targets[2], targets[3], targets[4] = -100, 0, vocabulary - 1
    before, beside = logits.clone(), wide[:, vocabulary:].clone()
    wanted, gradients = reference(before, targets, cap)
    assert torch.allclose(row_loss.RowLoss().rows(logits, targets, cap, gradients=False).double(), wanted, atol=1e-5)
    assert torch.equal(logits, before)
    losses = row_loss.RowLoss().rows(logits, targets, cap, gradients=True)
    assert torch.allclose(losses.double(), wanted, atol=1e-5)
    assert torch.allclose(logits.double(), gradients, rtol=torch.finfo(dtype).eps, atol=4e-6)
    assert losses[2] == 0
    assert (logits[2] == 0).all()
    assert torch.equal(wide[:, vocabulary:], beside)


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("target", [40, 41, -1])
def test_a_target_past_the_vocabulary_has_no_number(target: int, cap: float | None) -> None:
    """torch stops the program; a finite loss from beside the row would not be noticed."""
    losses = row_loss.RowLoss().rows(torch.randn(2, 64)[:, :40], torch.tensor([3, target]), cap, gradients=True)
    assert losses[0].isfinite()
    assert losses[1].isnan()


def test_a_head_and_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks, the last one shorter, of the tokens that bear a loss."""
    monkeypatch.setattr(row_loss, "cut", lambda vocabulary: (128, 4))
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 300)
    hidden = torch.randn(150, 16, requires_grad=True)
    targets, at = torch.randint(0, 300, (150,)), torch.arange(0, 150, 2)
    found = []
    for of_chunk in (chunk_loss, row_loss.RowLoss()):
        loss = summed_loss(head, None, hidden, targets, at, 64, of_chunk)
        found.append([loss.detach(), *torch.autograd.grad(loss, [hidden, head.weight, head.bias])])
        with torch.no_grad():
            assert torch.allclose(summed_loss(head, None, hidden, targets, at, 64, of_chunk), loss, rtol=1e-6)
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_head_that_needs_its_output_again_is_no_wrong_number() -> None:
    """Its gradients would be taken from what the kernel has written there."""
    torch.manual_seed(0)
    head = torch.nn.Sequential(torch.nn.Linear(8, 40), torch.nn.Tanh())
    hidden = torch.randn(5, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        summed_loss(head, None, hidden, torch.randint(0, 40, (5,)), None, 64, row_loss.RowLoss())
