"""What joins the loss, or changes it, whatever the accumulation: a router's auxiliary loss, label smoothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import documents, model_of, small_run, splits_of
from torch.nn.functional import log_softmax

COEFFICIENT = 0.5


def experts() -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = Qwen3MoeConfig(
            vocab_size=512, hidden_size=32, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
            max_position_embeddings=512, output_router_logits=True, router_aux_loss_coef=COEFFICIENT, initializer_range=0.1,
        )  # fmt: skip
        return Qwen3MoeForCausalLM(config)


def trainer_of(folder: Path, data: Path, model: Any, **options: Any) -> Any:
    """A trainer that is equipped and has not trained."""
    kept: list[Any] = []

    class _EnoughError(Exception):
        pass

    def before(session: Any) -> None:
        make = session.equipped

        def made(batch: Any) -> Any:
            kept.append(make(batch))
            raise _EnoughError

        session.equipped = made

    rows = documents(data, 8, longest=60)
    with pytest.raises(_EnoughError):
        small_run(folder / "run", splits_of(folder, rows, rows[:2]), model=model, before=before, max_steps=1, **options)
    return kept[0]


def plain_sum(trainer: Any, batch: Any, smoothing: float = 0.0) -> tuple[float, int, Any]:
    """(sum of the labelled tokens' losses, how many they are, the router's loss), from the logits."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "documents")}
    outputs = trainer.model(**inputs)
    wanted = batch["labels"][0, 1:]
    logs = log_softmax(outputs.logits[0, :-1][wanted != -100].double(), -1)
    wanted = wanted[wanted != -100]
    likely = -logs[torch.arange(len(wanted)), wanted].sum()
    spread = -logs.mean(-1).sum()
    return float((1 - smoothing) * likely + smoothing * spread), len(wanted), getattr(outputs, "aux_loss", None)


def test_a_router_s_loss_is_in_a_step_once_however_many_micro_batches(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, data, experts())
    batches = [trainer.collate([np.array([0])]), trainer.collate([np.array([1, 2])])]
    found = [plain_sum(trainer, batch) for batch in batches]
    items = sum(count for _, count, _ in found)
    wanted = sum(total + COEFFICIENT * float(extra) * count for total, count, extra in found) / items
    trainer.model.train()
    losses = [
        trainer.compute_loss(
            trainer.model, {k: v for k, v in batch.items() if k != "documents"}, num_items_in_batch=torch.tensor(items)
        )
        for batch in batches
    ]
    assert float(sum(losses)) == pytest.approx(wanted, rel=1e-5)
    assert COEFFICIENT * float(found[0][2]) > 0.5  # it would be seen twice


def test_the_held_out_loss_has_no_router_in_it(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, data, experts(), eval_every=1)
    trainer.on_row = lambda row: None
    batches = list(trainer.get_eval_dataloader())
    found = [plain_sum(trainer, batch) for batch in batches]
    wanted = sum(total for total, _, _ in found) / sum(count for _, count, _ in found)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("takes_a_count", [True, False])
def test_label_smoothing_is_by_the_step_s_tokens(takes_a_count: bool, data: Path, tmp_path: Path) -> None:
    """Models that do not take an item count have their loss computed by the engine: smoothed like the others'."""
    trainer = trainer_of(tmp_path, data, model_of(), extra={"label_smoothing_factor": 0.2})
    trainer.model_accepts_loss_kwargs = takes_a_count
    batch = trainer.collate([np.array([0, 1])])
    total, count, _ = plain_sum(trainer, batch, 0.2)
    inputs = {name: value for name, value in batch.items() if name != "documents"}
    loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(2 * count))
    assert float(loss) == pytest.approx(total / (2 * count), rel=1e-5)


def test_experts_are_packed_though_they_share_products(data: Path, tmp_path: Path) -> None:
    """How many tokens an expert has depends on the pack: not bitwise the same, and no leak."""
    trainer = trainer_of(tmp_path, data, experts())
    assert trainer.collate.layout == "tokens"


def test_a_router_s_loss_is_no_fault_of_the_accumulation(data: Path, tmp_path: Path) -> None:
    """Two documents in one micro batch and in two have different ones: that proves nothing about the sums."""
    rows = documents(data, 8, longest=60)
    run = small_run(tmp_path / "run", splits_of(tmp_path, rows, rows[:2]), model=experts(), verify=True, max_steps=1)
    assert "accumulation not proven: the router's loss" in " ".join(run.said.split())
