"""Bytes of tensors, counted: golden numbers by hand."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dumbo.plan.ledger import Ledger


def test_what_is_held_goes_when_it_goes() -> None:
    with Ledger() as ledger:
        a = torch.zeros(1000)  # 4,000 bytes
        with ledger.making("activations"):
            b = a + 1
            b.view(10, 100)  # the same storage
        assert ledger.held["weights"] == 4000
        assert ledger.held["activations"] == 4000
        del b
        assert ledger.held["activations"] == 0
        a.to(torch.bfloat16)  # 2,000, gone at once
    assert ledger.peak == 8000
    assert ledger.at_peak["activations"] == 4000


def test_what_autograd_keeps_is_counted() -> None:
    """exp keeps its result, 4 kB; the sum's result is one number; backward makes a gradient of the sum and of x."""
    with Ledger() as ledger:
        x = torch.zeros(1000, requires_grad=True)
        with ledger.making("activations"):
            y = x.exp().sum()
        assert ledger.held["activations"] == 4004
        with ledger.making("backward"):
            y.backward()
        assert x.grad is not None
        ledger.move(x.grad, "gradients")
    assert ledger.held["gradients"] == 4000


def test_fake_tensors_are_counted_as_real_ones() -> None:
    """1,000 x 1,000 in float32 on a device that holds nothing."""
    with FakeTensorMode(), Ledger() as ledger:
        x = torch.empty(1000, 1000)
        y = x @ x
        assert ledger.held["weights"] == 8_000_000
        del y
    assert ledger.held["weights"] == 4_000_000
