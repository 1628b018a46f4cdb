"""The mixin over transformers' Trainer: what it overrides, what it measures, what it writes into metrics.jsonl."""

from __future__ import annotations

import copy
import inspect
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import Document, documents, model_of, small_run, splits_of

from dumbo.errors import RunFailed
from dumbo.trainer import engine as engine_module
from dumbo.trainer import feeding, measuring, saving, shrinking, stepping
from dumbo.trainer import rows as rows_module
from dumbo.trainer.engine import Engine
from dumbo.trainer.session import SftTrainer


@pytest.fixture(scope="module")
def rows(data: Path) -> list[Document]:
    return documents(data, 32, longest=100)


@pytest.fixture
def shared(rows: list[Document], tmp_path: Path) -> Any:
    return splits_of(tmp_path, rows[:20], rows[20:])


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


# ---- what is overridden ------------------------------------------------------------------------------------------


PARTS = {
    shrinking.Shrinking: shrinking,
    stepping.Stepping: stepping,
    feeding.Feeding: feeding,
    measuring.Measuring: measuring,
    rows_module.Rows: rows_module,
    saving.Saving: saving,
}


def _of_trainers(cls: type) -> set[str]:
    """What a class has under a name of Trainer's own: its methods', and what they set on themselves."""
    from transformers import Trainer

    theirs = set(dir(Trainer)) - set(dir(object)) | set(re.findall(r"\bself\.(\w+)\b", inspect.getsource(Trainer)))
    return {name for name in vars(cls) if name == "__init__" or (name in theirs and not name.startswith("__"))}


def test_one_file_overrides_trainers_methods_and_lists_them() -> None:
    assert [SftTrainer, Engine, *PARTS] == [cls for cls in SftTrainer.__mro__ if cls.__module__.startswith("dumbo.")]
    assert {cls: found for cls in (SftTrainer, *PARTS) if (found := _of_trainers(cls))} == {}
    for name in _of_trainers(Engine):
        assert re.search(rf"\b{name}\b", engine_module.__doc__ or ""), f"{engine_module.__name__} does not list {name}"
    assert {name for name in _of_trainers(Engine) if name.startswith("_")} == {
        "_save_checkpoint",
        "_load_from_checkpoint",
        "_load_optimizer_and_scheduler",
        "_get_grad_norm",
        "_maybe_log_save_evaluate",
        "_prepare_inputs",
    }


def test_transformers_calls_each_of_them(shared: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """By transformers itself, not by us: the frame that calls lies in trainer.py."""
    called: dict[str, set[str]] = {}

    def noting(name: str, real: Any) -> Any:
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            called.setdefault(name, set()).add(inspect.currentframe().f_back.f_globals["__name__"])  # type: ignore[union-attr]
            return real(self, *args, **kwargs)

        return wrapper

    for name in _of_trainers(Engine):
        monkeypatch.setattr(Engine, name, noting(name, vars(Engine)[name]))
    small_run(tmp_path / "run", shared, max_steps=2, eval_every=1, save_every=1)
    small_run(tmp_path / "run", shared, max_steps=4, save_every=1, resuming=True)
    ours_alone = {"get_eval_dataloader"}  # called by our own held-out loss, overridden for Trainer's other callers
    for name in _of_trainers(Engine) - ours_alone:
        assert "transformers.trainer" in called.get(name, set()), name


@pytest.mark.parametrize("module", PARTS.values(), ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_private_methods_that_are_called_are_there_and_listed(module: Any) -> None:
    from transformers import Trainer

    own = {name for cls in PARTS for name in vars(cls)}
    called = set(re.findall(r"(?:self|super\(\))\.(_\w+)\(", inspect.getsource(module))) - own
    for name in called:
        assert callable(getattr(Trainer, name)), name
        assert re.search(rf"\b{name}\b", module.__doc__ or ""), f"{module.__name__} does not list {name}"


def test_an_earlier_sharded_run_of_this_process_leaves_nothing(shared: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """accelerate leaves its wish for FSDP in the environment; on a GPU the next run would be sharded."""
    from accelerate.utils import DistributedType

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    seen: list[Any] = []
    small_run(tmp_path / "run", shared, max_steps=1, before=on_trainer(seen.append))
    (trainer,) = seen
    assert trainer.accelerator.distributed_type == DistributedType.NO
    assert not trainer.is_fsdp_enabled
    assert "ACCELERATE_USE_FSDP" not in os.environ


# ---- evaluation --------------------------------------------------------------------------------------------------


def held_out_loss(model: Any, rows: list[Document]) -> float:
    """Each document alone; the sum of the trained tokens' losses over their number."""
    total, tokens = 0.0, 0
    model.eval()
    with torch.no_grad():
        for ids, trained in rows:
            logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits[0].double()
            wanted = np.flatnonzero(trained)
            for place in wanted[wanted > 0]:
                total -= float(torch.log_softmax(logits[place - 1], -1)[int(ids[place])])
                tokens += 1
    return total / tokens


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_held_out_loss_is_a_mean_over_trained_tokens(rows: list[Document], packing: bool, tmp_path: Path) -> None:
    start = model_of(seed=4)
    wanted = held_out_loss(copy.deepcopy(start), rows[20:])
    for micro in (1, 2, 4):
        shared = splits_of(tmp_path / str(micro), rows[:20], rows[20:])
        run = small_run(
            tmp_path / f"run-{micro}",
            shared,
            model=copy.deepcopy(start),
            packing=packing,
            micro_batch_size=micro,
            max_steps=1,
        )
        first, last = [row["eval_loss"] for row in run.rows if "eval_loss" in row]
        assert first == pytest.approx(wanted, abs=1e-6)
        assert last == pytest.approx(held_out_loss(run.model, rows[20:]), abs=1e-6)
        assert run.metrics["eval_loss"] == last
        assert run.metrics["eval_loss_before"] == first


def test_a_fused_loss_is_used_in_evaluation_too(rows: list[Document], tmp_path: Path) -> None:
    """A model that can leave out its logits (Liger's `skip_logits`) is asked to; its loss is the one measured."""
    model = model_of(seed=4)
    wanted = held_out_loss(copy.deepcopy(model), rows[20:])
    plain, asked = type(model).forward, []

    def forward(self: Any, *args: Any, skip_logits: bool | None = None, labels: Any = None, **kwargs: Any) -> Any:
        if labels is not None:
            asked.append((self.training, skip_logits))
        out = plain(self, *args, labels=labels, **kwargs)
        if skip_logits:
            out.logits = None
        return out

    model.forward = forward.__get__(model)
    run = small_run(tmp_path / "run", splits_of(tmp_path, rows[:20], rows[20:]), model=model, max_steps=1)
    assert run.rows[0]["eval_loss"] == pytest.approx(wanted, abs=1e-6)
    assert {training for training, _ in asked} == {True, False}
    assert all(skipped is True for _, skipped in asked)


def test_evaluating_does_not_change_the_training(shared: Any, tmp_path: Path) -> None:
    """Dropout's random numbers are the same with and without evaluation and saving between the steps."""
    models = [model_of(attention_dropout=0.2) for _ in range(2)]
    often = small_run(tmp_path / "often", shared, model=models[0], max_steps=6, eval_every=1, save_every=2)
    never = small_run(tmp_path / "never", shared, model=models[1], max_steps=6, eval_every=None, eval_at_start=False)
    assert often.losses == never.losses
    assert all(torch.equal(p, never.weights()[name]) for name, p in often.weights().items())


def test_held_out_rows_without_trained_tokens(rows: list[Document], tmp_path: Path) -> None:
    silent = [(ids, np.zeros_like(trained)) for ids, trained in rows[20:]]
    run = small_run(tmp_path / "run", splits_of(tmp_path, rows[:8], silent), max_steps=2)
    assert "eval_loss" not in run.metrics
    assert "without a trained token: no held-out loss" in run.said


# ---- metrics.jsonl -----------------------------------------------------------------------------------------------

KEYS = {"step", "tokens", "loss", "grad_norm", "lr", "tokens_per_s", "mfu", "peak_memory_gib", "data_wait_ms"}


def test_rows_have_all_keys_and_true_counts(rows: list[Document], tmp_path: Path) -> None:
    shared = splits_of(tmp_path, rows[:20], rows[20:])
    run = small_run(tmp_path / "run", shared, packing=False, micro_batch_size=2, num_epochs=2)
    assert all(row.keys() >= KEYS for row in run.training_rows)
    assert [row["step"] for row in run.training_rows] == list(range(1, 11))
    assert {row["step"] for row in run.rows if "eval_loss" in row} == {0, 10}
    tokens = sum(len(ids) for ids, _ in rows[:20])
    trained = sum(int(mask[1:].sum()) for _, mask in rows[:20])
    assert run.training_rows[4]["tokens"] == tokens
    assert run.training_rows[-1]["tokens"] == run.metrics["tokens"] == 2 * tokens
    assert run.metrics["trained_tokens"] == 2 * trained
    assert run.metrics["documents"] == 40
    assert run.metrics["steps"] == 10
    assert run.metrics["train_loss"] == pytest.approx(sum(run.losses[-10:]) / 10)
    for row in run.training_rows:
        assert 0 <= row["data_wait_ms"] <= row["step_ms"]
        assert 0.05 < row["peak_memory_gib"] < 64
        assert row["mfu"] is None


def test_train_loss_is_the_mean_of_the_last_ten_logged(shared: Any, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", shared, max_steps=14)
    assert run.metrics["train_loss"] == pytest.approx(sum(run.losses[-10:]) / 10)
    assert run.metrics["first_loss"] == run.losses[0]


def test_log_every_averages_the_steps_between(shared: Any, tmp_path: Path) -> None:
    every = small_run(tmp_path / "every", shared, max_steps=9)
    third = small_run(tmp_path / "third", shared, max_steps=9, log_every=3)
    assert [row["step"] for row in third.training_rows] == [1, 3, 6, 9]
    steps = every.losses
    wanted = [steps[0], sum(steps[1:3]) / 2, sum(steps[3:6]) / 3, sum(steps[6:9]) / 3]
    assert third.losses == pytest.approx(wanted, abs=1e-6)
    assert [row["lr"] for row in third.training_rows] == [every.training_rows[step - 1]["lr"] for step in (1, 3, 6, 9)]


def test_loss_lr_and_gradient_norm_belong_to_one_step(shared: Any, tmp_path: Path) -> None:
    """What the optimizer really used in step n stands in row n; the norm is the one before clipping."""
    used: list[tuple[float, float]] = []

    def spy(trainer: Any) -> None:
        create = trainer.create_optimizer

        def created(*args: Any) -> Any:
            optimizer = create(*args)
            optimizer.register_step_pre_hook(
                lambda o, a, k: used.append((o.param_groups[0]["lr"], norm_of(trainer.model)))
            )
            return optimizer

        trainer.create_optimizer = created

    run = small_run(tmp_path / "run", shared, max_steps=8, max_grad_norm=0.01, before=on_trainer(spy))
    assert [row["lr"] for row in run.training_rows] == [lr for lr, _ in used]
    assert all(norm == pytest.approx(0.01, rel=1e-3) for _, norm in used), "clipped to 0.01"
    assert all(row["grad_norm"] > 0.1 for row in run.training_rows), "the norm before clipping"


def norm_of(model: Any) -> float:
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))


def test_no_clipping(shared: Any, tmp_path: Path) -> None:
    norms: list[float] = []

    def spy(trainer: Any) -> None:
        create = trainer.create_optimizer

        def created(*args: Any) -> Any:
            optimizer = create(*args)
            optimizer.register_step_pre_hook(lambda o, a, k: norms.append(norm_of(trainer.model)))
            return optimizer

        trainer.create_optimizer = created

    run = small_run(tmp_path / "run", shared, max_steps=4, max_grad_norm=0, before=on_trainer(spy))
    assert [row["grad_norm"] for row in run.training_rows] == pytest.approx(norms, rel=1e-4)


def test_speed_leaves_out_evaluating_and_saving(shared: Any, tmp_path: Path) -> None:
    def slow(trainer: Any) -> None:
        loader, write = trainer.get_eval_dataloader, trainer._write_state

        def waits(*args: Any) -> Any:
            time.sleep(0.5)
            return loader(*args)

        def saves(*args: Any) -> Any:
            time.sleep(0.5)
            return write(*args)

        trainer.get_eval_dataloader, trainer._write_state = waits, saves

    run = small_run(tmp_path / "run", shared, max_steps=6, eval_every=1, save_every=1, before=on_trainer(slow))
    assert all(row["step_ms"] < 500 for row in run.training_rows[1:]), [row["step_ms"] for row in run.training_rows]
    for before, after in zip(run.training_rows, run.training_rows[1:], strict=False):
        tokens = after["tokens"] - before["tokens"]
        assert after["tokens_per_s"] == pytest.approx(1000 * tokens / after["step_ms"], rel=0.01)


def test_slow_data_shows_as_waiting(shared: Any, tmp_path: Path) -> None:
    def slow(trainer: Any) -> None:
        collate = trainer.collate

        def waits(examples: Any) -> Any:
            time.sleep(0.05)
            return collate(examples)

        trainer.collate = waits

    run = small_run(tmp_path / "run", shared, packing=False, max_steps=3, micro_batch_size=2, before=on_trainer(slow))
    assert all(100 < row["data_wait_ms"] < 400 for row in run.training_rows)


# ---- numbers that are not finite ---------------------------------------------------------------------------------


def poisoning(when: Any, by: float = math.nan, micro: int | None = None) -> Any:
    """`before` of small_run: multiplies losses of the steps (from 0) that `when` says, of one micro batch or of all."""

    def poison(trainer: Any) -> None:
        compute, fetch = trainer.compute_loss, trainer.training_step
        trainer.micro_now = -1

        def loss(*args: Any, **kwargs: Any) -> Any:
            found = compute(*args, **kwargs)
            if not (trainer.model.training and when(trainer.state.global_step)):
                return found
            return found * by if micro is None or trainer.micro_now == micro else found

        def training_step(*args: Any) -> Any:
            trainer.micro_now = (trainer.micro_now + 1) % trainer.order.batch.accumulation
            return fetch(*args)

        trainer.compute_loss, trainer.training_step = loss, training_step

    return on_trainer(poison)


OPTIMIZERS = ["adamw_torch_fused", "adamw_torch"]
"""One that skips on the device, one that loses its gradients."""


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_bad_loss_is_skipped_and_its_documents_are_named(optimizer: str, shared: Any, tmp_path: Path) -> None:
    """Weights and optimizer state after the bad step are bitwise those before it; its micro batch is named by line."""
    from dumbo.batch import Batch
    from dumbo.trainer.sampler import GlobalBatches

    seen: dict[int, dict[str, torch.Tensor]] = {}

    def remember(trainer: Any) -> None:
        from transformers import TrainerCallback

        class Remember(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
                inner = trainer.optimizer.optimizer
                moments = {f"{n}-{k}": v.clone() for n, own in enumerate(inner.state.values()) for k, v in own.items()}
                seen[state.global_step] = weights | moments

        trainer.add_callback(Remember())

    def both(session: Any) -> None:
        poisoning(lambda step: step == 2, micro=1)(session)
        on_trainer(remember)(session)

    options: dict[str, Any] = {"packing": False, "micro_batch_size": 2, "max_steps": 5, "optimizer": optimizer}
    run = small_run(tmp_path / "run", shared, before=both, **options)
    assert seen[3].keys() == seen[2].keys()
    assert all(torch.equal(seen[3][name], seen[2][name]) for name in seen[2])
    assert not all(torch.equal(seen[4][name], seen[3][name]) for name in seen[2])
    members = GlobalBatches(20, Batch.of(4, 2, 1), 42, shared.train.lengths).global_batches(0)[2][2:]
    assert "step 3 is skipped: the loss is nan" in run.said
    assert f"in the batch: {'; '.join(f'rows.jsonl, line {member + 1}' for member in members)}\n" in run.said
    third = run.training_rows[2]
    assert third["loss"] is None
    assert third["skipped_steps"] == 1
    assert {"loss", "grad_norm"} <= set(third["not_finite"])
    assert [row.get("skipped_steps") for row in run.training_rows] == [None, None, 1, None, None]
    assert all(math.isfinite(row["loss"]) for row in run.training_rows if row["step"] != 3)


def test_an_infinite_loss_whose_gradient_is_finite_is_skipped_too(shared: Any, tmp_path: Path) -> None:
    """Added, not multiplied: the gradient alone would not show it."""

    def add(trainer: Any) -> None:
        compute = trainer.compute_loss

        def loss(*args: Any, **kwargs: Any) -> Any:
            from dumbo.trainer.bad_numbers import poisoned

            found = compute(*args, **kwargs)
            return poisoned(found + math.inf) if trainer.state.global_step == 1 and trainer.model.training else found

        trainer.compute_loss = loss

    run = small_run(tmp_path / "run", shared, max_steps=3, before=on_trainer(add))
    assert "step 2 is skipped: the loss is inf" in run.said


def test_with_log_every_the_logged_loss_is_of_the_good_steps(shared: Any, tmp_path: Path) -> None:
    """Steps 2 and 5 of 6 are bad: the row's loss is the mean of the other four, as they are logged one by one."""
    bad = poisoning(lambda step: step in (1, 4), by=math.inf)
    single = small_run(tmp_path / "single", shared, max_steps=6, before=bad)
    run = small_run(tmp_path / "run", shared, max_steps=6, log_every=6, before=bad)
    good = [row["loss"] for row in single.training_rows if row["loss"] is not None]
    assert len(good) == 4
    last = run.training_rows[-1]
    assert last["skipped_steps"] == 2
    first = run.training_rows[0]["loss"]  # step 1 is always logged
    assert last["loss"] == pytest.approx((sum(good) - first) / 3, abs=1e-6)
    assert "step 2 is skipped: the loss is inf" in run.said
    assert "step 5 is skipped: the loss is inf" in run.said


def test_a_gradient_that_is_not_finite(shared: Any, tmp_path: Path) -> None:
    def poison(trainer: Any) -> None:
        def hook(grad: torch.Tensor) -> torch.Tensor:
            return grad * float("inf") if trainer.state.global_step == 1 else grad

        next(trainer.model.parameters()).register_hook(hook)

    run = small_run(tmp_path / "run", shared, max_steps=4, before=on_trainer(poison))
    assert "step 2 is skipped: the gradient norm is" in run.said
    assert all(torch.isfinite(p).all() for p in run.weights().values())


def test_many_in_a_row_lead_back_to_the_checkpoint_then_end_the_run(shared: Any, tmp_path: Path) -> None:
    """Steps 4-6 are bad: back to what the checkpoint of step 4 holds, the weights after step 3. From step 10 on all are
    bad: the run ends, and says why."""
    options: dict[str, Any] = {"max_steps": 20, "save_every": 2, "max_bad_steps": 3, "save_total_limit": 9}
    with pytest.raises(RunFailed) as failed:
        small_run(tmp_path / "run", shared, before=poisoning(lambda step: step in (3, 4, 5) or step > 8), **options)
    text = str(failed.value)
    assert text.startswith("3 steps in a row were not finite, the last: step 12 is skipped: the loss is nan")
    assert "Going back to a checkpoint has not helped before" in text
    assert f"resume={tmp_path / 'run'}" in text
    assert "lower trainer.lr" in text
    from safetensors.torch import load_file

    checkpoints = tmp_path / "run" / "checkpoints"
    two, four, six = (load_file(checkpoints / f"step-00000{step}" / "model.safetensors") for step in (2, 4, 6))
    assert all(torch.equal(four[name], six[name]) for name in four)
    assert not all(torch.equal(two[name], four[name]) for name in four)
    ten = load_file(checkpoints / "step-000010" / "model.safetensors")
    assert not all(torch.equal(six[name], ten[name]) for name in six)
    assert all(torch.isfinite(tensor).all() for tensor in ten.values())


def test_the_schedule_goes_on_when_weights_go_back(shared: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 10, "save_every": 2, "max_bad_steps": 2}
    plain = small_run(tmp_path / "plain", shared, **options)
    run = small_run(tmp_path / "run", shared, before=poisoning(lambda step: step in (4, 5)), **options)
    assert "go back to step-000004" in run.said
    assert [row["lr"] for row in run.training_rows] == [row["lr"] for row in plain.training_rows]


def test_a_real_divergence_ends_the_run(shared: Any, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="no checkpoint to go back to"):
        small_run(
            tmp_path / "run", shared, max_steps=60, lr=1e18, warmup_steps=0, lr_scheduler="constant", max_grad_norm=0
        )


def test_the_guard_changes_no_number(shared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dumbo.trainer import bad_numbers

    guarded = small_run(tmp_path / "guarded", shared, max_steps=6)
    monkeypatch.setattr(
        bad_numbers.Watch, "guard", lambda self, step, norm, optimizer: self._norms.append((step, norm))
    )
    monkeypatch.setattr(stepping, "poisoned", lambda loss: loss)
    bare = small_run(tmp_path / "bare", shared, max_steps=6)
    assert guarded.losses == bare.losses
    assert all(torch.equal(p, bare.weights()[name]) for name, p in guarded.weights().items())


def test_a_spike_is_marked(shared: Any, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", shared, max_steps=24, lr=1e-4, before=poisoning(lambda step: step == 20, by=5.0))
    assert [row["step"] for row in run.training_rows if row.get("spike")] == [21]


def test_a_step_without_trained_tokens_is_no_nan(rows: list[Document], tmp_path: Path) -> None:
    """Rows whose answer was cut away: the step's loss is 0, and nothing moves."""
    silent = [(ids, np.zeros_like(trained)) for ids, trained in rows[:4]]
    model = model_of()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = small_run(
        tmp_path / "run", splits_of(tmp_path, silent), model=model, packing=False, max_steps=2, warmup_steps=0
    )
    assert run.losses == [0.0, 0.0]
    assert all(torch.equal(p, before[name]) for name, p in run.weights().items())
