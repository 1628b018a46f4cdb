"""On a CUDA device, one rank over NCCL: a fused AdamW beside sharded weights skips a step by a flag on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import distributed

from dumbo.trainer.bad_numbers import Watch
from dumbo.trainer.skipping import skips_on_device

pytestmark = pytest.mark.gpu


@pytest.fixture
def sharded() -> Iterator[torch.nn.Module]:
    """Two layers under fully_shard, with gradients."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("nccl", store=distributed.HashStore(), rank=0, world_size=1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8)).to("cuda")
    mesh = init_device_mesh("cuda", (1,))
    for layer in (*model, model):
        fully_shard(layer, mesh=mesh)
    model(torch.ones(2, 64, device="cuda")).sum().backward()
    yield model
    distributed.destroy_process_group()


def whole(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.full_tensor().clone() for p in model.parameters()]  # type: ignore[attr-defined]


def test_a_sharded_step_is_skipped_by_a_flag(sharded: torch.nn.Module) -> None:
    optimizer: Any = torch.optim.AdamW(sharded.parameters(), lr=1e-2, fused=True)
    can = skips_on_device(optimizer)
    print(f"torch {torch.__version__}: a fused AdamW beside DTensors {'takes' if can else 'refuses'} found_inf")
    if not can:
        pytest.skip(f"torch {torch.__version__} cannot; the run looks at the norm instead")
    optimizer.grad_scale = None  # as the code leaves it: gradients are not scaled
    before = whole(sharded)
    optimizer.found_inf = torch.ones((), device="cuda")
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, whole(sharded), strict=True))
    assert all(float(state["step"]) == 0 for state in optimizer.state.values())
    optimizer.found_inf = torch.zeros((), device="cuda")
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, whole(sharded), strict=True))


def test_the_watch_never_lets_a_bad_step_through(sharded: torch.nn.Module, tmp_path: Any) -> None:
    """Whatever the probe said; and where it said yes, nothing is read from the device."""
    from dumbo.launch.world import World

    optimizer: Any = torch.optim.AdamW(sharded.parameters(), lr=1e-2, fused=True)
    can = skips_on_device(optimizer)
    watch = Watch(store=None, world=World(), run=tmp_path)  # type: ignore[arg-type]
    before = whole(sharded)
    torch.cuda.set_sync_debug_mode("error" if can else "default")
    try:
        watch.guard(1, torch.full((), float("nan"), device="cuda"), optimizer)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, whole(sharded), strict=True))
