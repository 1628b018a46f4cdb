"""Masters against a loop that keeps them by hand, and through checkpoints, skipped steps and a whole training."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import documents, model_of, small_run, splits_of

from dumbo.errors import UserError
from dumbo.launch.world import World
from dumbo.model import dtype
from dumbo.trainer.masters import add_up_over_ranks, keep_masters
from dumbo.trainer.sft import Sft


def net() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)).bfloat16()


def gradients(model: Any, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    model.zero_grad()
    model(torch.randn(5, 8, generator=generator).bfloat16()).float().square().mean().backward()


def adamw(parameters: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(list(parameters), lr=1e-4, fused=True)


def test_weights_are_those_of_a_float32_reference() -> None:
    model, reference = net(), net()
    optimizer = adamw(model.parameters())
    assert keep_masters(optimizer) == 4
    kept = [parameter.detach().float().requires_grad_() for parameter in reference.parameters()]
    by_hand = adamw(kept)
    first = [parameter.detach().clone() for parameter in model.parameters()]
    for step in range(40):
        gradients(model, step)
        optimizer.step()
        gradients(reference, step)
        for master, weight in zip(kept, reference.parameters(), strict=True):
            master.grad = weight.grad.float()
        by_hand.step()
        with torch.no_grad():
            for master, weight in zip(kept, reference.parameters(), strict=True):
                weight.copy_(master)
    for found, wanted in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(found, wanted)
    assert not all(torch.equal(found, before) for found, before in zip(model.parameters(), first, strict=True))


def test_state_goes_through_a_checkpoint_bitwise(tmp_path: Path) -> None:
    model = net()
    optimizer = adamw(model.parameters())
    keep_masters(optimizer)
    for step in range(10):
        gradients(model, step)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    again = copy.deepcopy(net())
    again.load_state_dict(model.state_dict())
    other = adamw(again.parameters())
    keep_masters(other)
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for step in range(10, 30):
        for one, its in ((model, optimizer), (again, other)):
            gradients(one, step)
            its.step()
    for found, wanted in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(found, wanted)
    assert all(torch.equal(a, b) for a, b in zip(*(o.state_dict()["masters"] for o in (optimizer, other)), strict=True))


def test_a_skipped_step_leaves_masters_and_weights() -> None:
    model = net()
    optimizer: Any = adamw(model.parameters())
    keep_masters(optimizer)
    before = copy.deepcopy(optimizer.state_dict()["masters"])
    gradients(model, 0)
    next(model.parameters()).grad[0, 0] = float("nan")
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, optimizer.state_dict()["masters"], strict=True))
    assert all(torch.equal(m.bfloat16(), w) for m, w in zip(before, model.parameters(), strict=True))


def test_an_optimizer_that_cannot_skip_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs a fused optimizer[\s\S]*adamw_torch_fused"):
        keep_masters(torch.optim.SGD(net().parameters(), lr=1.0))


def test_nothing_in_half_precision_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"nothing that trains is in half precision[\s\S]*Leave it out"):
        keep_masters(adamw(net().float().parameters()))


def test_micro_batches_are_added_up_in_float32() -> None:
    """256 + 1 is 256 in bf16. The norm that is logged and clipped by is of the exact sum, too."""
    weight = torch.nn.Parameter(torch.zeros(4).bfloat16())
    optimizer: Any = torch.optim.SGD([weight], lr=1.0, fused=True)
    keep_masters(optimizer)
    for _ in range(2):
        weight.grad = None
        for factor in [256.0] + 20 * [1.0]:
            (weight * factor).sum().backward()
        assert float(torch.nn.utils.clip_grad_norm_([weight], 276.0)) == 552.0
        optimizer.step()
    assert optimizer.state_dict()["masters"][0].tolist() == pytest.approx([-276.0] * 4, rel=1e-6)


def test_beside_ddp_too(tmp_path: Path) -> None:
    """A group of one rank: its own sum is exact, DDP (which would reduce each in bf16) is kept from it."""

    class Times(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(4).bfloat16())
            self.unused = torch.nn.Parameter(torch.zeros(2).bfloat16())

        def forward(self, factor: float) -> torch.Tensor:
            return (self.weight * factor).sum()

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        model = Times()
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
        keep_masters(optimizer)
        ddp = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        for _ in range(2):
            for factor in [256.0] + 20 * [1.0]:
                with ddp.no_sync():
                    ddp(factor).backward()
            add_up_over_ranks(model.parameters())
            assert model.weight.grad is not None
            assert model.weight.grad.dtype == torch.float32
            assert model.weight.grad.tolist() == 4 * [276.0]
            assert model.unused.grad is not None, "another rank may have used it"
            optimizer.step()
            ddp.zero_grad()
    finally:
        torch.distributed.destroy_process_group()
    assert optimizer.state_dict()["masters"][0].tolist() == 4 * [-552.0]


@pytest.mark.parametrize(
    ("precision", "wrapped_in", "micro", "said"),
    [("auto", "none", 1, r"is for bf16, and the arithmetic here is fp32"), ("bf16", "FSDP2", 2, "not for sharded models"),
     ("bf16", "DDP", 1, None), ("bf16", "DDP", 2, None), ("bf16", "none", 1, None)],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_weights_are_loaded(
    precision: Any, wrapped_in: str, micro: int, said: str | None, data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(dtype, "bf16_in_hardware", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run: Any = SimpleNamespace(path=tmp_path, ranks=1, wrapped_in=wrapped_in, world=World(), facts={}, resuming=False)
    sft = Sft(master_weights=True, precision=precision, global_batch_size=2, micro_batch_size=micro)
    splits = splits_of(tmp_path, documents(data, 4))
    if said is None:
        sft.check_data(splits, run)
    else:
        with pytest.raises(UserError, match=said):
            sft.check_data(splits, run)


def test_a_training_learns_as_in_float32_and_resumes_bitwise(data: Path, tmp_path: Path) -> None:
    """With updates so small that bf16 alone would lose most of them."""
    splits = splits_of(tmp_path, documents(data, 24))
    options: dict[str, Any] = {"max_steps": 6, "save_every": 3, "precision": "bf16", "lr": 2e-4, "global_batch_size": 2,
                               "micro_batch_size": 1, "lr_scheduler": "constant", "warmup_steps": 0}  # fmt: skip
    exact = small_run(tmp_path / "exact", splits, **options)
    kept = small_run(tmp_path / "kept", splits, model=model_of().bfloat16(), master_weights=True, **options)
    assert kept.losses == pytest.approx(exact.losses, rel=5e-3)
    shutil.copytree(tmp_path / "kept", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-000006")
    again = small_run(
        tmp_path / "again", splits, model=model_of().bfloat16(), resuming=True, master_weights=True, **options
    )
    assert again.losses == kept.losses
    for name, weight in kept.weights().items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(again.weights()[name], weight), name
