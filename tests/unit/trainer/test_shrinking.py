"""Memory that runs out in a run of one process: the step is done again, and the numbers are those of the smaller micro batch.

Memory fails where it does in life, in a forward or backward pass that is too large, by a model that has no room for more
than some rows; everything after that is real.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Document, Run, documents, model_of, small_run, splits_of

from dumbo.batch import Batch
from dumbo.errors import MemoryFull, RunFailed
from dumbo.trainer.ahead import Ahead
from dumbo.trainer.memory import first_line, ran_out
from dumbo.trainer.shrinking import dealt

SAYS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.00 GiB is free."
)


class Backward(torch.autograd.Function):
    """Identity, whose backward finds no memory when there are more than some rows."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, full: bool) -> torch.Tensor:
        ctx.full = full
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        if ctx.full:
            raise torch.OutOfMemoryError(SAYS)
        return gradients[0], None


def with_room(
    rows: int, where: str = "forward", passes: int = 0, error: Callable[[], Exception] | None = None, **config: Any
) -> Any:
    """A model whose passes take at most so many rows (B of (B, T)), the first `passes` ones any.

    Args:
        where: forward, backward (when most gradients are there already), or evaluation (a forward one).
    """
    model = model_of(**config)
    made = 0
    held: list[weakref.ref[torch.Tensor]] = []

    def begins(module: Any, arguments: Any, kwargs: Any) -> None:
        nonlocal made
        made += model.training
        assert all(tensor() is None for tensor in held), "an earlier pass is still in memory"
        held.clear()

    def at_the_head(module: Any, arguments: Any) -> None:
        held.append(weakref.ref(arguments[0]))
        wanted = not model.training if where == "evaluation" else model.training and where == "forward"
        if wanted and len(arguments[0]) > rows and made > passes:
            raise error() if error else torch.OutOfMemoryError(SAYS)

    def embedded(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        full = where == "backward" and len(output) > rows and made > passes
        return Backward.apply(output, full) if model.training else output

    model.register_forward_pre_hook(begins, with_kwargs=True)
    model.lm_head.register_forward_pre_hook(at_the_head)
    model.get_input_embeddings().register_forward_hook(embedded)
    return model


@pytest.fixture(scope="module")
def rows(data: Path) -> list[Document]:
    return documents(data, 34, longest=60)


@pytest.fixture(scope="module")
def splits(rows: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return splits_of(tmp_path_factory.mktemp("splits"), rows[:20], rows[20:])


def on_trainer(change: Callable[[Any], None]) -> Callable[[Any], None]:
    """`before` of small_run: calls `change(trainer)` as soon as there is one."""

    def before(session: Any) -> None:
        make = session._trainer

        def made(batch: Batch) -> Any:
            trainer = make(batch)
            change(trainer)
            return trainer

        session._trainer = made

    return before


PADDED: dict[str, Any] = {
    "packing": False, "global_batch_size": 8, "micro_batch_size": 4, "num_epochs": 2, "eval_at_start": False,
}  # fmt: skip
"""20 documents: steps of 8, 8 and 4."""


def same(run: Run, other: Run, *, exactly: bool = True) -> None:
    """Losses, norms, held-out losses and weights are equal."""
    for key in ("loss", "grad_norm", "eval_loss", "tokens"):
        found, wanted = ([row[key] for row in each.rows if key in row] for each in (run, other))
        assert found == (wanted if exactly else pytest.approx(wanted, rel=1e-6)), key
    for name, weight in run.weights().items():
        assert torch.allclose(weight, other.weights()[name], rtol=0, atol=0 if exactly else 1e-5), name
    for key in ("documents", "tokens", "trained_tokens", "steps"):
        assert run.metrics[key] == other.metrics[key], key


def halvings(run: Run) -> list[tuple[int, int, int]]:
    return [(one["step"], one["from"], one["to"]) for one in run.facts["memory_halvings"]]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_the_numbers_are_those_of_the_smaller_micro_batch(splits: Any, tmp_path: Path, where: str) -> None:
    options = {**PADDED, "eval_every": 2}
    dropout = {"attention_dropout": 0.1}
    # the second micro batch of the first step: gradients and random numbers of one are there, and dropped
    run = small_run(tmp_path / "run", splits, model=with_room(2, where, 1, **dropout), **options)
    other = small_run(tmp_path / "other", splits, model=model_of(**dropout), **{**options, "micro_batch_size": 2})
    assert halvings(run) == [(1, 4, 2)]
    same(run, other)
    assert run.facts["batch"] == other.facts["batch"] == {"global": 8, "micro": 2, "ranks": 1, "accumulation": 4}
    assert (
        "The memory ran out at step 1 with micro batch 4 (CUDA out of memory. Tried to allocate 2.00 GiB)" in run.said
    )
    assert "it goes on with global batch 8 = micro 2 x ranks 1 x accumulation 4" in run.said


def test_packs_too(splits: Any, tmp_path: Path) -> None:
    model = model_of()
    most = 2 * splits.max_seq_len

    def forward(module: Any, arguments: Any, kwargs: Any) -> None:
        if model.training and kwargs["input_ids"].numel() > most:
            raise torch.OutOfMemoryError(SAYS)

    options: dict[str, Any] = {"global_batch_size": 4, "num_epochs": 3}
    model.register_forward_pre_hook(forward, with_kwargs=True)
    run = small_run(tmp_path / "run", splits, model=model, **options)
    assert halvings(run) == [(1, 4, 2)]
    same(run, small_run(tmp_path / "other", splits, micro_batch_size=2, **options))


@pytest.mark.parametrize("made", ["ahead", pytest.param("by a worker", marks=pytest.mark.full)])
def test_late_in_an_epoch(splits: Any, tmp_path: Path, made: str) -> None:
    """The batches of the next step are there already, in the old size."""

    def ahead(trainer: Any) -> None:
        trainer.ahead = Ahead(trainer.args.device) if made == "ahead" else None

    # 2 + 2 + 1 micro batches in the first epoch; the fourth is the second of step 2
    options = {**PADDED, "extra": {} if made == "ahead" else {"dataloader_num_workers": 1}}
    run = small_run(tmp_path / "run", splits, model=with_room(2, passes=3), before=on_trainer(ahead), **options)
    other = small_run(tmp_path / "other", splits, **{**PADDED, "micro_batch_size": 2})
    assert halvings(run) == [(2, 4, 2)]
    same(run, other, exactly=False)  # step 1 was of another size


def test_odd_sizes_go_to_the_next_that_divides(splits: Any, tmp_path: Path) -> None:
    options = {**PADDED, "global_batch_size": 6, "micro_batch_size": 3}
    run = small_run(tmp_path / "run", splits, model=with_room(2), **options)
    assert halvings(run) == [(1, 3, 2)]
    same(run, small_run(tmp_path / "other", splits, **{**options, "micro_batch_size": 2}))


def test_twice_and_in_the_evaluation(splits: Any, tmp_path: Path) -> None:
    options = {**PADDED, "eval_every": 2}
    run = small_run(tmp_path / "run", splits, model=with_room(1, "evaluation"), **options)
    assert halvings(run) == [(2, 4, 2), (2, 2, 1)]
    same(run, small_run(tmp_path / "other", splits, **{**options, "micro_batch_size": 1}), exactly=False)


def test_a_proof_without_memory_is_for_who_started_it(splits: Any, tmp_path: Path) -> None:
    with pytest.raises(MemoryFull) as ended:
        small_run(tmp_path / "run", splits, model=with_room(2), verify=True, **PADDED)
    assert (ended.value.step, ended.value.batch.micro, ended.value.asked) == (1, 4, 4)


class Greedy:
    """CUDA graphs, as far as memory goes: after some passes they find none."""

    hold_memory = True

    def __init__(self, trainer: Any, passes: int = 3) -> None:
        self.trainer, self.left = trainer, passes

    def run(self, model: Any, inputs: Any, items: Any) -> torch.Tensor:
        from transformers import Trainer

        self.left -= 1
        loss = Trainer.training_step(self.trainer, model, inputs, items)
        if self.left < 0:
            raise RuntimeError("the capture was ended") from torch.OutOfMemoryError(SAYS)
        return loss


def test_graphs_are_given_up_before_the_size(splits: Any, tmp_path: Path) -> None:
    """In the second pass of step 2: the step is done again as written, in micro batches of the same size."""

    def graphs(trainer: Any) -> None:
        trainer.cuda_graphs = None
        trainer.capture_from_now_on = lambda: setattr(trainer, "graphs", Greedy(trainer))

    run = small_run(tmp_path / "run", splits, before=on_trainer(graphs), **PADDED)
    same(run, small_run(tmp_path / "other", splits, **PADDED))
    assert "memory_halvings" not in run.facts
    assert run.facts["cuda_graphs"].startswith("off: the memory ran out with them at step 2 (CUDA out of memory.")
    assert run.facts["graphs_given_up"] == {"step": 2, "text": SAYS.split(". GPU")[0], "asked": 4}
    assert "at step 2 with micro batch 4" in run.said
    assert "it goes on without CUDA graphs" in run.said


@pytest.mark.parametrize(("left_open", "goes"), [(None, True), (True, False)])
def test_graphs_that_hold_memory_in_the_optimizers_step(
    left_open: bool | None, goes: bool, splits: Any, tmp_path: Path
) -> None:
    """Whoever started the run is told that it may fit without them; not where they were asked for."""

    def graphs(trainer: Any) -> None:
        trainer.cuda_graphs = left_open
        trainer.capture_from_now_on = lambda: setattr(trainer, "graphs", Greedy(trainer, passes=100))
        without_memory(trainer)

    with pytest.raises(MemoryFull) as ended:
        small_run(tmp_path / "run", splits, before=on_trainer(graphs), **PADDED)
    assert (ended.value.step, ended.value.graphs) == (1, goes)


def test_it_ends_at_micro_batch_1(splits: Any, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="with a single example in a micro batch") as ended:
        small_run(tmp_path / "run", splits, model=with_room(0), **PADDED)
    assert "resume=run 'patch=[gradient_checkpointing]'" in str(ended.value)
    assert "a smaller trainer.max_seq_len" in str(ended.value)


def test_it_ends_after_three_times(splits: Any, tmp_path: Path) -> None:
    options = {**PADDED, "global_batch_size": 16, "micro_batch_size": 16}
    with pytest.raises(RunFailed, match=r"halved 3 times \(16 -> 8 -> 4 -> 2\)") as ended:
        small_run(tmp_path / "run", splits, model=with_room(1), **options)
    assert "trainer.micro_batch_size=1" in str(ended.value)


def test_a_resumed_run_keeps_it(splits: Any, tmp_path: Path) -> None:
    options = {**PADDED, "save_every": 2, "lr_scheduler": "constant", "warmup_steps": 0}
    small_run(tmp_path / "run", splits, model=with_room(2), max_steps=2, **options)
    going_on = {"resuming": True, "before": lambda session: session.run.reload()}
    run = small_run(tmp_path / "run", splits, max_steps=6, **going_on, **options)
    assert halvings(run) == [(1, 4, 2)]
    assert run.facts["batch"]["micro"] == 2
    assert "not 4 in a micro batch: the memory ran out at step 1" in run.said
    same(run, small_run(tmp_path / "other", splits, **{**options, "micro_batch_size": 2}, max_steps=6))
    asked = small_run(tmp_path / "run", splits, max_steps=8, **going_on, **{**options, "micro_batch_size": 8})
    assert asked.facts["batch"]["micro"] == 8


def without_memory(trainer: Any) -> None:
    """The optimizer's step finds none."""

    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError(SAYS)

    create = trainer.create_optimizer

    def creating(*arguments: Any) -> Any:
        optimizer = create(*arguments)
        optimizer.register_step_pre_hook(full)
        return optimizer

    trainer.create_optimizer = creating


def test_the_optimizers_step_is_for_who_started_it(splits: Any, tmp_path: Path) -> None:
    with pytest.raises(MemoryFull) as ended:
        small_run(tmp_path / "run", splits, before=on_trainer(without_memory), **PADDED)
    assert (ended.value.step, ended.value.batch.micro, ended.value.asked) == (1, 4, 4)
    assert not ended.value.graphs


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (torch.OutOfMemoryError(SAYS), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                      "tried to allocate 400 bytes. Error code 12 (Cannot allocate memory)"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)  # fmt: skip
def test_what_counts_as_memory(error: Exception, counts: bool) -> None:
    assert ran_out(error) is counts
    assert first_line(error)


def test_what_an_error_came_of_counts() -> None:
    """A capture that ends badly says so over what ended it; a library may give another cause than what it handled."""

    def captured() -> None:
        try:
            raise torch.OutOfMemoryError(SAYS)
        except RuntimeError:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture") from ValueError()

    with pytest.raises(RuntimeError) as ended:
        captured()
    assert ran_out(ended.value)
    assert first_line(ended.value) == SAYS.split(". GPU")[0]


def test_torchs_own_words_are_known() -> None:
    with pytest.raises(RuntimeError) as ended:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ran_out(ended.value)
    assert first_line(ended.value).startswith("DefaultCPUAllocator: can't allocate memory: you tried to allocate")


def test_other_errors_rise(splits: Any, tmp_path: Path) -> None:
    model = with_room(2, error=lambda: RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        small_run(tmp_path / "run", splits, model=model, **PADDED)


def test_sizes_that_divide() -> None:
    found, batch = [12], Batch.of(24, 12, 2)
    while (batch := batch.halved()) is not None:  # type: ignore[assignment]
        assert batch.micro * batch.ranks * batch.accumulation == batch.global_
        found.append(batch.micro)
    assert found == [12, 6, 3, 2, 1]
    assert Batch.of(36, 9, 1).halved() == Batch(36, 6, 1, 6)


def test_passes_hold_all_micro_batches() -> None:
    assert dealt([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4, 5]]
    assert dealt([1, 2, 3], 3) == [[1], [2], [3]]


def test_the_sum_that_is_set_back_is_transformers_own() -> None:
    from transformers import Trainer

    assert "self._tr_loss += tr_loss_step" in inspect.getsource(Trainer)
