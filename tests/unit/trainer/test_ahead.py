"""Batches made one step ahead: the same ones, in the same order, over epochs, accumulation and resuming."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import documents, small_run, splits_of

from dumbo.trainer.ahead import Ahead
from dumbo.trainer.sft import Sft

CPU = torch.device("cpu")


def ahead_of(session: Any) -> None:
    """Switches it on as on a GPU."""
    make = session._trainer

    def made(batch: Any) -> Any:
        trainer = make(batch)
        assert trainer.ahead is None, "on a CPU its thread would take the cores from the arithmetic"
        trainer.ahead = Ahead(CPU)
        return trainer

    session._trainer = made


def test_steps_of_several_batches_and_a_short_last_one() -> None:
    ahead = Ahead(CPU)
    for epoch in (range(7), range(10, 14)):
        iterator = iter(epoch)
        taken = [ahead.take(iterator, 3), ahead.take(iterator, 3), ahead.take(iterator, 3)]
        assert [number for step in taken for number in step] == list(epoch)
    ahead.close()


def test_it_works_while_the_step_trains_and_is_one_step_ahead() -> None:
    made: list[tuple[int, str]] = []

    def batches() -> Iterator[int]:
        for number in range(9):
            made.append((number, threading.current_thread().name))
            yield number

    ahead, iterator = Ahead(CPU), batches()
    assert ahead.take(iterator, 2) == [0, 1]
    until = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    assert [number for number, _ in made] == [0, 1, 2, 3]
    assert made[2][1].startswith("batches")
    assert ahead.take(iterator, 2) == [2, 3]
    ahead.close()


def test_an_error_rises_in_the_step_that_needs_the_batch() -> None:
    def batches() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    ahead, iterator = Ahead(CPU), batches()
    assert ahead.take(iterator, 1) == [1]
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.take(iterator, 1)
    ahead.close()


def test_training_is_bitwise_the_same_and_resumes(data: Path, tmp_path: Path) -> None:
    """Two epochs, accumulating, stopped at step 3 of each other's checkpoints."""
    import shutil

    assert Sft().prefetch, "on a GPU, where nothing else is asked for"
    splits = splits_of(tmp_path, documents(data, 22))
    options: dict[str, Any] = {
        "num_epochs": 2,
        "packing": False,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "save_every": 3,
    }
    plain = small_run(tmp_path / "plain", splits, **options)
    threaded = small_run(tmp_path / "threaded", splits, before=ahead_of, **options)
    assert threaded.losses == plain.losses
    shutil.copytree(tmp_path / "plain", tmp_path / "again")
    for checkpoint in (tmp_path / "again" / "checkpoints").glob("step-*"):
        if checkpoint.name != min(path.name for path in (tmp_path / "plain" / "checkpoints").glob("step-*")):
            shutil.rmtree(checkpoint)
    again = small_run(tmp_path / "again", splits, resuming=True, before=ahead_of, **options)
    assert again.losses == plain.losses
    for name, weight in plain.weights().items():
        assert torch.equal(threaded.weights()[name], weight), name
        assert torch.equal(again.weights()[name], weight), name
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
