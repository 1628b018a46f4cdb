"""Checkpoints written beside training: the same bytes, from a copy that training does not touch, and failures that are told."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import documents, model_of, small_run, splits_of

from dumbo.errors import RunFailed
from dumbo.launch.world import World
from dumbo.trainer.beside import HostCopy, room_for
from dumbo.trainer.host_memory import available_memory
from dumbo.trainer.manifest import verify


@pytest.fixture
def shared(data: Path, tmp_path: Path) -> Any:
    return splits_of(tmp_path, documents(data, 20, longest=100))


def on_trainer(change: Any) -> Any:
    """`before` of small_run: calls `change(trainer)` as soon as there is one."""

    def before(session: Any) -> None:
        make = session._trainer

        def made(batch: Any) -> Any:
            trainer = make(batch)
            change(trainer)
            return trainer

        session._trainer = made

    return before


def adapted() -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    return get_peft_model(model_of(), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1))


def equal(found: Any, wanted: Any) -> bool:
    """Nested dicts, lists and tensors, bit by bit."""
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(equal(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(equal, found, wanted))
    if isinstance(wanted, torch.Tensor):
        return found.dtype == wanted.dtype and torch.equal(found, wanted)
    return bool(found == wanted)


@pytest.mark.parametrize("make", [model_of, adapted], ids=["full", "lora"])
def test_beside_and_in_the_foreground_write_the_same(make: Any, shared: Any, tmp_path: Path) -> None:
    for name, beside in (("fore", False), ("beside", True)):
        small_run(
            tmp_path / name, shared, model=make(), max_steps=6, save_every=2, save_total_limit=9, async_save=beside
        )
    folders = sorted((tmp_path / "fore" / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["step-000002", "step-000004", "step-000006"]
    for wanted in folders:
        found = tmp_path / "beside" / "checkpoints" / wanted.name
        assert verify(found) is None
        assert sorted(file.name for file in found.iterdir()) == sorted(file.name for file in wanted.iterdir())
        for file in wanted.glob("*.safetensors"):
            assert equal(load_file(found / file.name), load_file(file))
        states = [torch.load(folder / "optimizer.pt", weights_only=True) for folder in (found, wanted)]
        assert states[0]["state"], "an optimizer without state shows nothing"
        assert equal(*states)


def test_training_goes_on_while_a_checkpoint_is_written(shared: Any, tmp_path: Path) -> None:
    """The writer of step 2 waits until step 3 has been trained: in the foreground that would never end."""
    trained = threading.Event()

    def slow(trainer: Any) -> None:
        from transformers import TrainerCallback

        class Third(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == 3:
                    trained.set()

        trainer.add_callback(Third())
        real = trainer._save_weights

        def waits(folder: Path, *args: Any) -> None:
            assert trained.wait(60), "nothing was trained while the checkpoint was being written"
            real(folder, *args)

        trainer._save_weights = waits

    whole = small_run(tmp_path / "whole", shared, max_steps=6)
    run = small_run(tmp_path / "run", shared, max_steps=6, save_every=2, async_save=True, before=on_trainer(slow))
    assert run.losses == whole.losses
    folder = run.path / "checkpoints" / "step-000004"
    resumed = tmp_path / "resumed"
    (resumed / "checkpoints").mkdir(parents=True)
    folder.rename(resumed / "checkpoints" / folder.name)
    (resumed / "metrics.jsonl").write_text((run.path / "metrics.jsonl").read_text())
    again = small_run(resumed, shared, max_steps=6, resuming=True)
    assert again.losses == whole.losses
    assert all(torch.equal(again.weights()[name], tensor) for name, tensor in whole.weights().items())


def failing(*steps: int) -> Any:
    """The weights of these steps cannot be written."""

    def change(trainer: Any) -> None:
        real = trainer._save_weights

        def writes(folder: Path, *args: Any) -> None:
            if any(f"step-{step:06d}" in folder.name for step in steps):
                raise OSError(errno.ENOSPC, "No space left on device")
            real(folder, *args)

        trainer._save_weights = writes

    return on_trainer(change)


def test_a_failure_is_told_and_the_next_one_is_written_in_the_foreground(shared: Any, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", shared, max_steps=6, save_every=2, async_save=True, before=failing(2))
    assert "step-000002 could not be written: the disk is full" in run.said
    assert "training has gone on" in run.said
    assert sorted(folder.name for folder in (run.path / "checkpoints").iterdir()) == ["step-000004", "step-000006"]


@pytest.mark.parametrize("steps", [(2, 4), (6,)], ids=["two in a row", "the last, twice"])
def test_a_run_that_cannot_save_ends(steps: tuple[int, ...], shared: Any, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=f"step-{steps[-1]:06d} could not be written: the disk is full"):
        small_run(tmp_path / "run", shared, max_steps=6, save_every=2, async_save=True, before=failing(*steps))
    left = sorted(folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ([] if steps[0] == 2 else ["step-000002", "step-000004"])


def failing_once(step: int) -> Any:
    """The weights of a step cannot be written the first time."""
    times = 0

    def change(trainer: Any) -> None:
        real = trainer._save_weights

        def writes(folder: Path, *args: Any) -> None:
            nonlocal times
            if f"step-{step:06d}" in folder.name and not times:
                times += 1
                raise OSError(errno.EIO, "Input/output error")
            real(folder, *args)

        trainer._save_weights = writes

    return on_trainer(change)


def test_the_last_one_is_tried_twice(shared: Any, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", shared, max_steps=4, save_every=2, async_save=True, before=failing_once(4))
    assert "step-000004 could not be written" in run.said
    assert "it is tried once more" in run.said
    assert verify(run.path / "checkpoints" / "step-000004") is None


def test_the_last_one_is_not_copied_first(shared: Any, tmp_path: Path) -> None:
    """There is no training that could go on beside it: of steps 2 and 4 the first is copied."""
    copied: list[str] = []

    def change(session: Any) -> None:
        def watched(trainer: Any) -> None:
            copy = trainer.beside.copy
            trainer.beside.copy = lambda tree, name: (copied.append(name), copy(tree, name))[1]

        on_trainer(watched)(session)

    run = small_run(tmp_path / "run", shared, max_steps=4, save_every=2, async_save=True, before=change)
    assert copied == ["weights", "optimizer"]
    for step in (2, 4):
        assert verify(run.path / "checkpoints" / f"step-{step:06d}") is None


def test_what_was_not_written_is_not_the_best(data: Path, tmp_path: Path) -> None:
    """Step 2 has the lowest held-out loss, and its checkpoint could not be written: the best of the others is taken."""
    rows = documents(data, 24, longest=100)
    splits = splits_of(tmp_path, rows[:20], rows[20:])
    seen: list[Any] = []

    def change(session: Any) -> None:
        def better_at_2(trainer: Any) -> None:
            seen.append(trainer)
            real = trainer.evaluate

            def evaluate(*args: Any, **kwargs: Any) -> Any:
                found = real(*args, **kwargs)
                if trainer.state.global_step == 2:
                    trainer.held_out = (2, 0.0)
                return found

            trainer.evaluate = evaluate

        on_trainer(better_at_2)(session)
        failing_once(2)(session)

    run = small_run(tmp_path / "run", splits, max_steps=6, save_every=2, eval_every=2, async_save=True,
                    load_best_at_end=True, before=change)  # fmt: skip
    assert "step-000002 could not be written" in run.said
    (trainer,) = seen
    assert trainer.counters.best_step in (4, 6)


def test_a_failure_of_training_leaves_the_checkpoint_under_way_whole(shared: Any, tmp_path: Path) -> None:
    began = threading.Event()

    def change(trainer: Any) -> None:
        from transformers import TrainerCallback

        class Third(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == 3:
                    began.set()
                    raise RuntimeError("out of memory")

        trainer.add_callback(Third())
        real = trainer._save_weights

        def waits(folder: Path, *args: Any) -> None:
            assert began.wait(60)
            real(folder, *args)

        trainer._save_weights = waits

    with pytest.raises(RuntimeError, match="out of memory"):
        small_run(tmp_path / "run", shared, max_steps=6, save_every=2, async_save=True, before=on_trainer(change))
    assert verify(tmp_path / "run" / "checkpoints" / "step-000002") is None


def test_time_for_saving_is_the_writing_too(shared: Any, tmp_path: Path) -> None:
    """What max_time reserves: the first estimate until a checkpoint has been written, and one under way counts."""
    seen: list[tuple[float, bool, float]] = []

    def change(trainer: Any) -> None:
        from transformers import TrainerCallback

        trainer.save_estimate = 50.0

        class Looks(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                seen.append((trainer.save_seconds, trainer.beside.busy, trainer.beside.seconds or 0.0))

        trainer.add_callback(Looks())

    small_run(tmp_path / "run", shared, max_steps=5, save_every=2, async_save=True, before=on_trainer(change))
    assert seen[0][0] == 50.0
    assert seen[2][0] >= (100.0 if seen[2][2] == 0 else seen[2][2])
    assert 0.0 < seen[4][2] <= seen[4][0] < 50.0


def test_memory_for_a_copy_is_what_the_group_leaves(tmp_path: Path) -> None:
    for name, text in {
        "proc/meminfo": "MemTotal: 100 kB\nMemAvailable: 80 kB\n",
        "sys/fs/cgroup/memory.max": "61440\n",
        "sys/fs/cgroup/memory.current": "20480\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_memory(tmp_path) == 40960
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 80 * 1024
    assert available_memory(tmp_path / "nowhere") is None
    assert room_for(1.0, World())
    assert not room_for(1e18, World())


def test_a_copy_is_nobody_elses() -> None:
    copy, weight = HostCopy(), torch.arange(6.0).reshape(2, 3)
    state = {
        "a": weight,
        "tied": weight,
        "state": {0: {"step": torch.tensor(3.0), "moment": weight * 2}},
        "lr": [0.1, None],
    }
    copied = copy(state, "x")
    weight.zero_()
    assert copied["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert copied["tied"] is copied["a"], "tied weights stay tied"
    assert copied["state"][0]["moment"].sum() == 30
    assert copied["state"][0]["step"] == 3
    assert copied["lr"] == [0.1, None]
    again = copy({**state, "a": weight + 1}, "x")
    assert again["state"][0]["moment"].data_ptr() == copied["state"][0]["moment"].data_ptr(), "buffers are used again"
    assert again["a"].tolist() == [[1, 1, 1], [1, 1, 1]]
