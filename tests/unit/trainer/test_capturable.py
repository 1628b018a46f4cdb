"""Which runs are captured as CUDA graphs, what is said of the others, and the few kinds that batches come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import documents, small_run, splits_of, store_of

from dumbo.trainer.capturable import why_not
from dumbo.trainer.collate import Collate, Room
from dumbo.trainer.graphs import _copies, _key

YES: dict[str, Any] = {
    "compiled": True, "chunked": True, "fixed_room": True, "bf16": True, "wrapped_in": "none", "checkpointing": False,
    "random": False,
}  # fmt: skip


def test_a_run_that_can_be_captured() -> None:
    assert why_not(**YES) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"compiled": False}, "patch=[…,compile]"),
        ({"compiled": False, "chunked": False}, "patch=[…,compile,chunked_loss]"),
        ({"fixed_room": False}, "packs"),
        ({"bf16": False}, "precision=bf16"),
        ({"wrapped_in": "DDP"}, "in DDP"),
        ({"checkpointing": True}, "gradient_checkpointing"),
        ({"random": True}, "dropout"),
    ],
)
def test_the_others_say_why(change: dict[str, Any], said: str) -> None:
    assert said in str(why_not(**{**YES, **change}))


@pytest.mark.parametrize(
    ("longest", "told"), [(1, 256), (256, 256), (257, 512), (512, 512), (1025, 2048), (2048, 2048)]
)
def test_the_longest_document_that_attention_is_told_of(longest: int, told: int) -> None:
    """Halves of the longest possible, never less than there is."""
    assert Room(8192, 2048, few_kinds=True).told(longest) == told
    assert Room(8192, 2048).told(longest) == 2048


@pytest.mark.parametrize(("amount", "places"), [(1, 512), (512, 512), (513, 1024), (8191, 8192), (8192, 8192)])
def test_places_that_bear_a_loss_are_rounded_up(amount: int, places: int) -> None:
    assert Room(8192, 2048, few_kinds=True).places(amount) == places
    assert Room(8192, 2048).places(amount) == amount


def test_filled_up_places_bear_no_loss(data: Path, tmp_path: Path) -> None:
    """The last token of the axis: nothing follows it. All that bears a loss is still named, once."""
    store = store_of(tmp_path, documents(data, 8))
    plain = Collate(store, "tokens", 0, Room(2048, 256), places=True)([np.arange(8)])
    batch = Collate(store, "tokens", 0, Room(2048, 256, few_kinds=True), places=True)([np.arange(8)])
    amount = len(plain["loss_at"])
    assert len(batch["loss_at"]) % 128 == 0
    assert batch["loss_at"][:amount].tolist() == plain["loss_at"].tolist()
    assert set(batch["loss_at"][amount:].tolist()) <= {2047}
    assert batch["labels"].equal(plain["labels"])


def test_kinds_differ_in_shapes_and_lengths_and_nothing_else() -> None:
    one = {"input_ids": torch.zeros(1, 8), "max_length_q": 256}
    assert _key(one) == _key({"max_length_q": 256, "input_ids": torch.ones(1, 8)})
    assert _key(one) != _key({**one, "max_length_q": 512})
    assert _key(one) != _key({**one, "input_ids": torch.zeros(1, 9)})


def test_a_tensor_under_two_names_stays_one() -> None:
    bounds = torch.arange(3)
    made = _copies({"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 4})
    assert made["cu_seq_lens_q"] is made["cu_seq_lens_k"] is not bounds
    assert made["max_length_q"] == 4


def test_without_a_gpu_they_are_left_out_and_that_is_said(data: Path, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", splits_of(tmp_path, documents(data, 8)), max_steps=1, cuda_graphs=True)
    assert run.facts["cuda_graphs"] == "off: no CUDA device"
    assert "cuda_graphs are left out: no CUDA device" in run.said
