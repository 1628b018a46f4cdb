"""Each job sees only its devices; threads are divided; what the user restricted stays restricted."""

from __future__ import annotations

import pytest

from dumbo.errors import UserError
from dumbo.sweep import slots as module
from dumbo.sweep.options import SweepOptions
from dumbo.sweep.slots import Slot, alone, divided, slots, wants_pool


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores, no GPU named."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "cores", lambda: 8)


def visible(found: list[Slot]) -> list[str]:
    return [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in found]


def test_one_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    found = slots(SweepOptions())
    assert [slot.name for slot in found] == ["GPU 0", "GPU 1", "GPU 2", "GPU 3"]
    assert visible(found) == ["0", "1", "2", "3"]
    assert {slot.environment["OMP_NUM_THREADS"] for slot in found} == {"2"}
    assert wants_pool(SweepOptions())


def test_several_gpus_each_and_what_is_left_over_stays_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    found = slots(SweepOptions(gpus_per_job=2))
    assert visible(found) == ["0,1", "2,3"]
    assert [slot.name for slot in found] == ["GPU 0,1", "GPU 2,3"]


def test_several_jobs_on_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs are filled evenly: the first jobs get a GPU each."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found = slots(SweepOptions(jobs_per_gpu=2))
    assert visible(found) == ["0", "1", "0", "1"]
    assert {slot.environment["OMP_NUM_THREADS"] for slot in found} == {"2"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert visible(slots(SweepOptions(jobs_per_gpu=3))) == ["0"] * 3
    assert not wants_pool(SweepOptions())


def test_what_the_user_restricted_stays_restricted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 2,-1,0")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = slots(SweepOptions())
    assert visible(found) == ["5", "2"], "CUDA stops at the first invalid one"
    assert [slot.name for slot in found] == ["GPU 5", "GPU 2"]
    assert all("OMP_NUM_THREADS" not in slot.environment for slot in found)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8a,GPU-7b")
    assert visible(slots(SweepOptions())) == ["GPU-8a", "GPU-7b"]
    assert [slot.name for slot in slots(SweepOptions())] == ["GPU 0", "GPU 1"]


def test_cpu_slots_hide_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found = slots(SweepOptions(cpu_slots=3))
    assert [slot.name for slot in found] == ["cpu 0", "cpu 1", "cpu 2"]
    assert visible(found) == [""] * 3
    assert {slot.environment["OMP_NUM_THREADS"] for slot in found} == {"2"}


def test_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert slots(SweepOptions()) == [Slot("cpu 0")]
    assert not wants_pool(SweepOptions())
    assert not wants_pool(SweepOptions(cpu_slots=1))
    assert wants_pool(SweepOptions(cpu_slots=2))
    assert divided(16) == {"OMP_NUM_THREADS": "1"}


def test_too_few_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match=r"gpus_per_job=2, but 1 GPU is visible here"):
        slots(SweepOptions(gpus_per_job=2))


def test_what_is_asked_for_is_never_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of the pool without a pool, or without a GPU, are no wish that is forgotten."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for options in (SweepOptions(jobs_per_gpu=2), SweepOptions(gpus_per_job=2)):
        assert wants_pool(options)
        with pytest.raises(UserError, match=r"no GPU is visible here"):
            slots(options)
    with pytest.raises(UserError, match=r"hydra/launcher=process runs one job after another"):
        alone(SweepOptions(cpu_slots=2))
    with pytest.raises(UserError, match=r"hydra/launcher=submitit_slurm: .*are of the pool.*\n.*gpus_per_node=N"):
        slots(SweepOptions(gpus_per_job=4), "submitit_slurm")
    assert alone(SweepOptions(cpu_slots=1)) == [Slot()]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert wants_pool(SweepOptions(jobs_per_gpu=2)), "one GPU, several jobs"
