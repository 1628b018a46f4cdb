"""Which examples make up which batch: exactly once an epoch, whatever the batch sizes, from anywhere."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import skip_first_batches
from small_runs import Document, documents, small_run, splits_of

from dumbo.batch import Batch
from dumbo.trainer.sampler import GlobalBatches


def sampler(
    size: int, global_: int, micro: int, *, seed: int = 1, lengths: Any = None, epoch: int = 0
) -> GlobalBatches:
    made = GlobalBatches(size, Batch.of(global_, micro, 1), seed, lengths)
    made.set_epoch(epoch)
    return made


@pytest.mark.parametrize("size", [1, 2, 7, 8, 64, 129, 199])
@pytest.mark.parametrize(("global_", "micro"), [(1, 1), (4, 1), (4, 2), (4, 4), (6, 3), (16, 2), (256, 8)])
@pytest.mark.parametrize("padded", [False, True])
def test_every_example_once_an_epoch(size: int, global_: int, micro: int, padded: bool) -> None:
    lengths = np.random.default_rng(0).integers(1, 50, size) if padded else None
    batches = sampler(size, global_, micro, lengths=lengths)
    for epoch in range(2):
        batches.set_epoch(epoch)
        seen = list(batches)
        assert len(seen) == len(batches)
        assert Counter(index for batch in seen for index in batch) == Counter(range(size))
        assert all(1 <= len(batch) <= micro for batch in seen)
        steps = batches.global_batches(epoch)
        assert len(steps) == batches.steps() == -(-size // global_)
        assert [len(step) for step in steps[:-1]] == [global_] * (len(steps) - 1)


@pytest.mark.parametrize("padded", [False, True])
def test_a_step_does_not_depend_on_the_micro_batch(padded: bool) -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 130) if padded else None
    found = []
    for micro in (1, 2, 4, 8):
        batches = sampler(130, 8, micro, lengths=lengths)
        flat = list(batches)
        accumulation = 8 // micro
        found.append(
            [sorted(itertools.chain(*flat[at : at + accumulation])) for at in range(0, len(flat), accumulation)]
        )
    assert found[0] == found[1] == found[2] == found[3]


def test_a_pure_function_of_seed_and_epoch() -> None:
    first, second = sampler(100, 8, 2), sampler(100, 8, 2)
    list(second)
    np.random.seed(0)  # the global state must not matter
    second.set_epoch(1)
    list(second)
    second.set_epoch(0)
    assert list(first) == list(second)
    assert list(sampler(100, 8, 2, seed=2)) != list(first)
    assert list(sampler(100, 8, 2, epoch=1)) != list(first)


def test_alike_lengths_share_a_batch() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 512)
    grouped, plain = sampler(512, 8, 8, lengths=lengths), sampler(512, 8, 8)
    waste = [sum(max(lengths[b]) * len(b) for b in batches) / lengths.sum() for batches in (grouped, plain)]
    assert waste[0] < 1.2 < 1.5 < waste[1]
    means = [float(lengths[batch].mean()) for batch in grouped]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.4, "batches come in order of length"


@pytest.fixture(scope="module")
def rows(data: Path) -> list[Document]:
    return documents(data, 30, longest=80)


class Seen:
    """Notes which documents each step trains, and every example that is read."""

    def __init__(self) -> None:
        self.steps: dict[int, list[int]] = {}
        self.read: list[int] = []

    def watch(self, session: Any) -> None:
        make = session._trainer

        def made(batch: Any) -> Any:
            trainer = make(batch)
            fetch, collate = trainer.get_batch_samples, trainer.collate

            def noted(*args: Any) -> Any:
                before = len(self.read)
                found = fetch(*args)
                self.steps[trainer.state.global_step + 1] = sorted(self.read[before:])
                return found

            def reading(examples: Any) -> Any:
                self.read += [int(d) for example in examples for d in example]
                return collate(examples)

            trainer.get_batch_samples, trainer.collate = noted, reading
            return trainer

        session._trainer = made


OPTIONS: dict[str, Any] = {"packing": False, "micro_batch_size": 2, "num_epochs": 3}


@pytest.fixture(scope="module")
def uninterrupted(rows: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Which documents each step of a run trains that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    shared, whole = splits_of(folder, rows), Seen()
    small_run(folder / "run", shared, before=whole.watch, **OPTIONS)
    expected = GlobalBatches(30, Batch.of(4, 2, 1), 42, shared.train.lengths)
    assert list(whole.steps) == list(range(1, 25))
    for step, members in whole.steps.items():
        epoch, index = divmod(step - 1, 8)
        assert members == sorted(expected.global_batches(epoch)[index].tolist()), step
    return whole


@pytest.mark.parametrize("stop", [1, 8, 16, 19])  # steps an epoch: 8 (the last one short); 8 and 16 are its ends
def test_resuming_goes_on_with_exactly_the_right_examples(
    rows: list[Document], uninterrupted: Seen, stop: int, tmp_path: Path
) -> None:
    shared = splits_of(tmp_path, rows)

    class Interrupted(Exception):
        pass

    def interrupt(session: Any) -> None:
        log = session._on_row

        def row(found: dict[str, Any]) -> None:
            log(found)
            if found["step"] == stop + 1:
                raise Interrupted

        session._on_row = row

    with pytest.raises(Interrupted):
        small_run(tmp_path / "part", shared, before=interrupt, save_every=stop, **OPTIONS)
    rest = Seen()
    done = small_run(tmp_path / "part", shared, resuming=True, before=rest.watch, save_every=stop, **OPTIONS)
    assert rest.steps == {step: members for step, members in uninterrupted.steps.items() if step > stop}
    assert len(rest.read) == sum(map(len, rest.steps.values())), "what was skipped was read"
    assert [row["step"] for row in done.training_rows] == list(range(1, 25))


def test_skipping_asks_the_data_for_nothing() -> None:
    """accelerate's skip works on the sampler: no example of a skipped batch is fetched."""
    import torch

    fetched: list[int] = []

    class Data(torch.utils.data.Dataset[int]):
        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int) -> int:
            fetched.append(index)
            return index

    loader = torch.utils.data.DataLoader(Data(), batch_sampler=sampler(100, 4, 4), collate_fn=list)
    rest = list(skip_first_batches(loader, 20))
    assert sum(map(len, rest)) == len(fetched) == 20
