"""`trainer=sft`'s options reach the optimizer, the schedule, and transformers; none is silently without effect."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Document, documents, model_of, small_run, splits_of

from dumbo.errors import UserError
from dumbo.trainer.arguments import training_arguments
from dumbo.trainer.duration import seconds_of
from dumbo.trainer.extra import ELSEWHERE, OWN_KEYS, WITHOUT_EFFECT, refusal
from dumbo.trainer.sft import Sft


@pytest.fixture(scope="module")
def rows(data: Path) -> list[Document]:
    return documents(data, 24, longest=60)


@pytest.fixture
def shared(rows: list[Document], tmp_path: Path) -> Any:
    return splits_of(tmp_path, rows[:16], rows[16:])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), (" 1.5H ", 5400), ("2h30m", 9000), ("1d2h3m4.5s", 93784.5), (".5m", 30), ("1m30", 90), (12, 12),
     (0.5, 0.5), (None, None)],
)  # fmt: skip
def test_lengths_of_time(text: Any, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["1.2.3h", ".", "", "h", "1h.", "m5", "1_0", "٣h", "-5", "0", "0h", "inf", 0, -1.0, math.inf, math.nan]
)
def test_what_is_no_length_of_time(text: Any) -> None:
    with pytest.raises(UserError, match="max_time is seconds above 0, or as in 90m or 2h30m"):
        seconds_of(text)


def cosine(step: int, steps: int, warmup: int) -> float:
    return step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def linear(step: int, steps: int, warmup: int) -> float:
    return step / warmup if step < warmup else (steps - step) / (steps - warmup)


def constant_with_warmup(step: int, steps: int, warmup: int) -> float:
    return min(1.0, step / warmup)


@pytest.mark.parametrize("schedule", [cosine, linear, constant_with_warmup])
@pytest.mark.parametrize(("warmup_steps", "warmup"), [(3, 3), (0.25, 3)])
def test_schedules(shared: Any, schedule: Any, warmup_steps: float, warmup: int, tmp_path: Path) -> None:
    """The lr of each step by its formula; below 1 the warm-up is a share of all steps (12 here)."""
    run = small_run(
        tmp_path / "run", shared, max_steps=12, lr=0.02, lr_scheduler=schedule.__name__, warmup_steps=warmup_steps
    )
    wanted = [0.02 * schedule(step, 12, warmup) for step in range(12)]
    assert [row["lr"] for row in run.training_rows] == pytest.approx(wanted, abs=1e-12)


def test_a_schedule_with_its_own_arguments(shared: Any, tmp_path: Path) -> None:
    extra = {"lr_scheduler_kwargs": {"min_lr": 0.005}}
    run = small_run(
        tmp_path / "run", shared, max_steps=8, lr=0.02, lr_scheduler="cosine_with_min_lr", warmup_steps=0, extra=extra
    )
    lrs = [row["lr"] for row in run.training_rows]
    assert lrs[0] == pytest.approx(0.02)
    assert lrs == sorted(lrs, reverse=True)
    assert 0.005 < lrs[-1] < 0.007


def test_a_schedule_that_cannot_be_made_is_told_before_training(shared: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)lr_scheduler=warmup_stable_decay cannot be made.*lr_scheduler_kwargs"):
        small_run(tmp_path / "run", shared, max_steps=8, lr_scheduler="warmup_stable_decay")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_plateau_needs_something_held_out(rows: list[Document], shared: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is held out"):
        small_run(tmp_path / "a", splits_of(tmp_path / "x", rows[:8]), max_steps=2, lr_scheduler="reduce_lr_on_plateau")
    run = small_run(tmp_path / "b", shared, max_steps=3, eval_every=1, lr_scheduler="reduce_lr_on_plateau")
    assert len(run.losses) == 3


def test_a_warm_up_longer_than_the_run_is_said(shared: Any, tmp_path: Path) -> None:
    assert (
        "ends before its peak learning rate" in small_run(tmp_path / "run", shared, max_steps=2, warmup_steps=20).said
    )


@pytest.mark.parametrize(("scheduler", "learns"), [("cosine", False), ("constant", True)])
def test_a_run_whose_only_step_is_warm_up_says_that_nothing_is_learned(
    scheduler: str, learns: bool, shared: Any, tmp_path: Path
) -> None:
    model = model_of()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    options = {"max_steps": 1, "warmup_steps": 1, "lr_scheduler": scheduler}
    run = small_run(tmp_path / "run", shared, model=model, **options)
    changed = any(not torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert changed is learns
    assert ("NOTHING IS LEARNED" in run.said) is not learns


def test_weight_decay_is_for_matrices(shared: Any, tmp_path: Path) -> None:
    """With a learning rate whose gradient is nil, only decayed weights shrink, by (1 - lr x decay) a step."""
    model = model_of()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    small_run(
        tmp_path / "run", shared, model=model, max_steps=2, lr=0.1, warmup_steps=0, lr_scheduler="constant", weight_decay=0.5,
        extra={"adam_epsilon": 1e12},  # an epsilon so large that Adam's own step is nothing
    )  # fmt: skip
    for name, p in model.named_parameters():
        factor = 1.0 if "norm" in name else (1 - 0.1 * 0.5) ** 2
        assert torch.allclose(p, before[name] * factor, atol=1e-6), name
    assert any("norm" in name for name in before)


def test_max_steps_wins_and_says_so(shared: Any, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", shared, packing=False, max_steps=6, num_epochs=1)  # an epoch: 4 steps
    assert run.metrics["steps"] == 6
    assert "6 steps (trainer.max_steps wins over num_epochs; 1.50 epochs)" in run.said
    whole = small_run(tmp_path / "whole", shared, packing=False, num_epochs=2)
    assert whole.metrics["steps"] == 8
    assert "8 steps, 2 epochs" in whole.said


def test_the_arithmetic_is_shown_and_recorded(shared: Any, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", shared, max_steps=1, micro_batch_size=2)
    assert "global batch 4 = micro 2 x ranks 1 x accumulation 2" in run.said
    assert run.facts["batch"] == {"global": 4, "micro": 2, "ranks": 1, "accumulation": 2}
    with pytest.raises(
        UserError, match=r"(?s)global batch 4 = micro 3 x ranks 1 x accumulation 1.33.*micro_batch_size=2"
    ):
        Sft(global_batch_size=4, micro_batch_size=3).batch(1)


def test_seeds(shared: Any, tmp_path: Path) -> None:
    """One seed, one curve, to the last bit; another seed, another. Dropout takes part."""
    runs = [small_run(tmp_path / str(n), shared, model=model_of(attention_dropout=0.1), max_steps=5, seed=seed)
            for n, seed in enumerate((1, 1, 2))]  # fmt: skip
    assert runs[0].losses == runs[1].losses
    assert all(torch.equal(p, runs[1].weights()[name]) for name, p in runs[0].weights().items())
    assert runs[0].losses != runs[2].losses


def test_new_adapters_come_from_the_seed() -> None:
    from dumbo.patch.lora import LoRA
    from dumbo.trainer.seeds import seed_all

    def adapters(seed: int) -> list[torch.Tensor]:
        torch.rand(3)
        seed_all(Sft(seed=seed))
        return [p for name, p in LoRA(rank=2).apply(model_of()).named_parameters() if "lora_A" in name]

    first, again, other = adapters(1), adapters(1), adapters(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_bf16_on_the_cpu(shared: Any, tmp_path: Path) -> None:
    """Weights stay fp32, arithmetic is bf16: near the fp32 curve, and not it."""
    exact = small_run(tmp_path / "fp32", shared, max_steps=8)
    rounded = small_run(tmp_path / "bf16", shared, max_steps=8, precision="bf16", verify=True)
    assert {p.dtype for p in rounded.model.parameters()} == {torch.float32}
    assert rounded.losses == pytest.approx(exact.losses, rel=0.03)
    assert rounded.losses != pytest.approx(exact.losses, rel=1e-5)
    assert rounded.losses[-1] < rounded.losses[0] - 0.3


# ---- trainer.extra -----------------------------------------------------------------------------------------------


def _fields() -> list[str]:
    from transformers import TrainingArguments

    return [field.name for field in dataclasses.fields(TrainingArguments) if field.init]


SAFE_VALUES: dict[str, Any] = {
    "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6, "label_smoothing_factor": 0.1, "neftune_noise_alpha": 5.0,
    "optim_args": "a=1", "optim_target_modules": ["q_proj"], "lr_scheduler_kwargs": {}, "eval_delay": 2, "torch_empty_cache_steps": 3,
    "dataloader_num_workers": 1, "dataloader_prefetch_factor": 3, "dataloader_persistent_workers": True, "dataloader_pin_memory": False,
    "dataloader_in_order": False, "dataloader_multiprocessing_context": "spawn", "full_determinism": False, "use_cpu": True, "tf32": None,
    "debug": "", "ddp_backend": None,
    "ddp_find_unused_parameters": False, "ddp_bucket_cap_mb": 10, "ddp_broadcast_buffers": False, "ddp_static_graph": False,
    "ddp_timeout": 100,
}  # fmt: skip


def test_every_argument_of_transformers_is_taken_or_refused_by_name(tmp_path: Path) -> None:
    from dumbo.batch import Batch

    named = [*OWN_KEYS, *(n for names in (*ELSEWHERE.values(), *WITHOUT_EFFECT.values()) for n in names)]
    assert len(named) == len(set(named)), "named twice"
    batch = Batch.of(4, 2, 1)
    for name in _fields():
        if name in named:
            with pytest.raises(UserError, match=f"trainer.extra.{name}: "):
                Sft(extra={name: 1})
            continue
        assert name in SAFE_VALUES, f"TrainingArguments.{name} is new: does it take effect under dumbo's engine?"
        extra = {name: SAFE_VALUES[name]}
        if name in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
            extra["dataloader_num_workers"] = 1
        arguments = training_arguments(Sft(extra=extra), tmp_path, batch, evaluates=True)
        got = getattr(arguments, name)
        if name not in ("debug", "lr_scheduler_kwargs", "tf32", "optim_args"):
            assert got == SAFE_VALUES[name], name


def test_own_keys_are_keys() -> None:
    keys = {field.name for field in dataclasses.fields(Sft)}
    assert set(OWN_KEYS.values()) <= keys
    assert refusal("adam_beta2") is None
    assert "trainer.lr" in (refusal("learning_rate") or "")


def test_what_transformers_refuses_is_the_users_to_mend(tmp_path: Path) -> None:
    from dumbo.batch import Batch

    with pytest.raises(UserError, match=r"trainer.extra: transformers refuses it: .*prefetch_factor"):
        training_arguments(Sft(extra={"dataloader_prefetch_factor": 2}), tmp_path, Batch.of(4, 2, 1), evaluates=True)


def test_extra_takes_effect(shared: Any, tmp_path: Path) -> None:
    plain = small_run(tmp_path / "plain", shared, max_steps=4)
    other = small_run(tmp_path / "other", shared, max_steps=4, extra={"adam_beta1": 0.5})
    assert plain.losses[:2] == other.losses[:2]
    assert plain.losses[3] != other.losses[3]
    noisy = small_run(tmp_path / "noisy", shared, max_steps=2, extra={"neftune_noise_alpha": 20.0})
    assert noisy.losses[0] != plain.losses[0]


def test_data_loader_workers_give_the_same_batches(shared: Any, tmp_path: Path) -> None:
    plain = small_run(tmp_path / "plain", shared, max_steps=3)
    workers = small_run(tmp_path / "workers", shared, max_steps=3, extra={"dataloader_num_workers": 1})
    assert workers.losses == plain.losses
