"""Which optimizers skip a step on the device: plain and sharded weights, real fused kernels, on one gloo rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dumbo.trainer import skipping
from dumbo.trainer.skipping import skips_on_device


@pytest.fixture
def sharded() -> Iterator[torch.nn.Module]:
    """A layer under fully_shard, with gradients."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8)
    fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
    layer(torch.ones(2, 8)).sum().backward()
    skipping._found.clear()
    yield layer
    skipping._found.clear()
    distributed.destroy_process_group()


def whole(layer: torch.nn.Module) -> list[torch.Tensor]:
    return [p.full_tensor().clone() for p in layer.parameters()]  # type: ignore[attr-defined]


def test_what_the_probe_says_is_what_the_sharded_step_does(sharded: torch.nn.Module) -> None:
    optimizer: Any = torch.optim.AdamW(sharded.parameters(), fused=True)
    assert skips_on_device(optimizer), "torch's own kernel, as of the versions in pyproject.toml"
    before = whole(sharded)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, whole(sharded), strict=True))
    assert all(float(state["step"]) == 0 for state in optimizer.state.values())
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, whole(sharded), strict=True))


def test_asked_once_and_refused_where_it_raises(sharded: torch.nn.Module) -> None:
    calls: list[float] = []

    class Refusing(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            calls.append(float(self.found_inf))  # type: ignore[attr-defined]
            raise RuntimeError("got mixed torch.Tensor and DTensor")

    class Ignoring(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.mul_(0.5)

    optimizer = Refusing(sharded.parameters(), fused=True)
    assert [skips_on_device(optimizer) for _ in range(3)] == [False] * 3
    assert calls == [1.0]
    assert not skips_on_device(Ignoring(sharded.parameters(), fused=True)), "it steps whatever the flag says"


def test_plain_weights() -> None:
    weights = [torch.nn.Parameter(torch.ones(2))]
    assert skips_on_device(torch.optim.AdamW(weights, fused=True))
    assert not skips_on_device(torch.optim.AdamW(weights, fused=False))
    assert not skips_on_device(torch.optim.SGD(weights, lr=1.0))
