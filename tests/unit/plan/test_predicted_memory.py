"""Memory of a tiny model by part: numbers by hand, from its shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dumbo.plan.memory import FIXED, predict, spread
from dumbo.plan.rehearse import Counted

WIDTH, LAYERS, MLP, VOCABULARY = 128, 2, 384, 512
PARAMETERS = VOCABULARY * WIDTH + LAYERS * (4 * WIDTH**2 + 3 * WIDTH * MLP + 2 * WIDTH) + WIDTH
"""Tied embedding; per layer four attention matrices, three of the MLP, two norms; the last norm."""
FREQUENCIES = 2 * 16
"""Rotary embedding's buffers, two of half a head's width."""


def test_full_fine_tuning(experiment: Callable[..., Any]) -> None:
    plugins, tokenizer, data = experiment("trainer.global_batch_size=2", "trainer.micro_batch_size=1")
    memory = predict(plugins, tokenizer, data, plugins.trainer.batch(1))
    assert memory.held["weights"] == 4 * (PARAMETERS + FREQUENCIES)
    assert memory.held["gradients"] == 4 * PARAMETERS
    counters = (
        13 * 4
    )  # AdamW's step counters, one a tensor: embedding, 2 x 9 of the layers, the last norm, less or more
    assert 8 * PARAMETERS <= memory.held["optimizer"] <= 8 * PARAMETERS + 10 * counters
    assert memory.parts["libraries"] >= FIXED["cpu"]


def test_checkpointing_keeps_a_layers_input(experiment: Callable[..., Any]) -> None:
    """Packs of 128 tokens: beside the inputs of both layers, few things of width 128 are kept."""
    words = ("trainer.global_batch_size=8", "trainer.micro_batch_size=8")
    plugins, tokenizer, data = experiment(*words)
    kept = predict(plugins, tokenizer, data, plugins.trainer.batch(1)).parts["activations"]
    plugins, tokenizer, data = experiment(*words, "patch=gradient_checkpointing")
    recomputed = predict(plugins, tokenizer, data, plugins.trainer.batch(1)).parts["activations"]
    row = 8 * 128 * WIDTH * 4
    assert recomputed < 8 * row
    assert kept > 3 * recomputed


def test_lora_has_few_gradients(experiment: Callable[..., Any]) -> None:
    plugins, tokenizer, data = experiment("patch=lora", "patch.lora.rank=4", "trainer.micro_batch_size=1")
    memory = predict(plugins, tokenizer, data, plugins.trainer.batch(1))
    adapters = LAYERS * 4 * (4 * (2 * WIDTH) + 3 * (WIDTH + MLP))
    assert memory.held["gradients"] == 4 * adapters
    assert memory.held["weights"] == 4 * (PARAMETERS + FREQUENCIES + adapters)


@pytest.mark.parametrize(("global_", "bytes_"), [(2, 2), (4, 4 + 2)])
def test_gradients_beside_masters_on_two_ranks(global_: int, bytes_: int, experiment: Callable[..., Any]) -> None:
    """One micro batch a step: in DDP's buckets alone, in bf16; two: summed up in float32, and the buckets are there too."""
    words = ("launch=ddp", "launch.num_processes=2", "trainer.micro_batch_size=1", f"trainer.global_batch_size={global_}",
             "model.dtype=bfloat16", "trainer.precision=bf16", "trainer.optimizer=adamw_torch_fused",
             "trainer.master_weights=true")  # fmt: skip
    plugins, tokenizer, data = experiment(*words)
    memory = predict(plugins, tokenizer, data, plugins.trainer.batch(2))
    assert memory.held["weights"] == pytest.approx(2 * PARAMETERS, rel=0.01)
    assert memory.held["gradients"] == bytes_ * PARAMETERS
    own = 8 + 4 + (4 if global_ == 2 else 0)  # moments, masters, and for the step alone float32 gradients
    assert memory.held["optimizer"] <= own * PARAMETERS + 1000
    assert memory.held["optimizer"] >= (8 + 4) * PARAMETERS


COUNTED = Counted(
    {"weights": 400, "gradients": 0, "optimizer": 800, "activations": 50, "loss": 30, "backward": 20}, 400, 400, 800
)


@pytest.mark.parametrize(
    ("wrapper", "wanted"),
    [
        ("none", {"weights": 400, "gradients": 0, "optimizer": 800}),
        ("DDP", {"weights": 400, "gradients": 400, "optimizer": 800}),  # in its buckets all the time
        (
            "FSDP2",
            {"weights": 100, "gradients": 0, "optimizer": 200, "gathered layers": 14},
        ),  # a quarter, and two layers
    ],
)
def test_what_a_rank_of_four_has(wrapper: str, wanted: dict[str, int]) -> None:
    found = spread(COUNTED, wrapper, 4, 7, "cuda", None).parts
    assert {name: found[name] for name in wanted} == wanted
    assert (found["activations"], found["logits and loss"], found["backward"]) == (50, 30, 20)


def test_against_what_is_free() -> None:
    peak = spread(COUNTED, "none", 1, 7, "cuda", None).peak
    assert spread(COUNTED, "none", 1, 7, "cuda", peak).fits
    assert not spread(COUNTED, "none", 1, 7, "cuda", peak - 1).fits
    assert not spread(COUNTED, "none", 1, 7, "cuda", peak).surely_fits
