"""Experts are rehearsed in any dtype: torch's own rule for the shape of their products knows bfloat16 alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig, TrainingArguments
from transformers.integrations import moe

from dumbo.plan.ledger import Ledger
from dumbo.plan.rehearse import Counted, rehearse
from dumbo.plan.stand_in import StandIn

SHAPE = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS = {
    "experts": Qwen3MoeConfig(**SHAPE, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2),
    "without": Qwen3Config(**SHAPE),
}
TOKENS = 256


def made(name: str, dtype: torch.dtype, device: str) -> torch.nn.Module:
    with torch.device(device):
        return AutoModelForCausalLM.from_config(CONFIGS[name], dtype=dtype).train()


def batch() -> dict[str, torch.Tensor]:
    ids = torch.arange(TOKENS)[None] % 512
    return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def rehearsed(name: str, dtype: torch.dtype, folder: Path) -> Counted:
    args = TrainingArguments(output_dir=str(folder), use_cpu=True, bf16=False, optim="adamw_torch")
    model = StandIn(made(name, dtype, "meta"))
    return rehearse(model, batch(), args, torch.device("cpu"), layout="padded", micro_batches=1)


def kept_by_a_real_one(name: str, dtype: torch.dtype) -> int:
    model: Any = made(name, dtype, "cpu")
    model.config.use_cache = False
    with Ledger() as ledger:
        for parameter in model.parameters():
            parameter.view_as(parameter)  # known from here on, as weights
        with ledger.making("activations"):
            loss = model(**batch(), num_items_in_batch=torch.tensor(TOKENS)).loss
        kept = ledger.held["activations"]
    loss.backward()
    return kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_keep_as_much_as_real_ones(dtype: torch.dtype, tmp_path: Path) -> None:
    before = moe._grouped_mm
    found, without = (rehearsed(name, dtype, tmp_path) for name in CONFIGS)
    assert moe._grouped_mm is before
    assert found.gradients == dtype.itemsize * sum(p.numel() for p in made("experts", dtype, "meta").parameters())
    real, other = (kept_by_a_real_one(name, dtype) for name in CONFIGS)
    assert real > other
    assert found.at_peak["activations"] - without.at_peak["activations"] == pytest.approx(real - other, rel=0.05)
