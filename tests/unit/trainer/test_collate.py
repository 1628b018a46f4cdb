"""Documents to tensors, in the three layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import Document, documents, model_of, small_run, splits_of, store_of

from dumbo.prepare.packing import pack
from dumbo.trainer.collate import Collate


@pytest.fixture(scope="module")
def rows(data: Path) -> list[Document]:
    return documents(data, 12)


def test_tokens(rows: list[Document], tmp_path: Path) -> None:
    batch = Collate(store_of(tmp_path, rows), "tokens", 0)([np.array([3, 1]), np.array([0])])
    members = [3, 1, 0]
    lengths = [len(rows[member][0]) for member in members]
    assert batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape == (1, sum(lengths))
    assert batch["cu_seq_lens_q"].tolist() == [0, *np.cumsum(lengths)]
    assert batch["max_length_q"] == max(lengths)
    assert batch["documents"].tolist() == members
    for member, start, length in zip(members, batch["cu_seq_lens_q"].tolist(), lengths, strict=False):
        ids, trained = rows[member]
        span = slice(start, start + length)
        assert batch["input_ids"][0, span].tolist() == ids.tolist()
        assert batch["position_ids"][0, span].tolist() == list(range(length))
        assert batch["labels"][0, span].tolist() == [int(i) if t else -100 for i, t in zip(ids, trained, strict=True)]


def test_rows(rows: list[Document], tmp_path: Path) -> None:
    batch = Collate(store_of(tmp_path, rows), "rows", 9)([np.array([3, 1]), np.array([0])])
    first, second = len(rows[3][0]) + len(rows[1][0]), len(rows[0][0])
    assert batch["input_ids"].shape == (2, first)
    assert "attention_mask" not in batch
    assert batch["input_ids"][1, second:].tolist() == [9] * (first - second)
    assert (batch["labels"][1, second:] == -100).all()
    assert batch["position_ids"][1].tolist() == [*range(second), *range(first - second)]


def test_padding_is_known_by_length(rows: list[Document], tmp_path: Path) -> None:
    """Where the pad token is the end token (SmolLM2-Instruct), the end of each document stays seen and trained."""
    end = int(rows[0][0][-1])
    batch = Collate(store_of(tmp_path, rows), "padded", pad_id=end)([np.array([n]) for n in (2, 0, 1)])
    for row, member in enumerate((2, 0, 1)):
        length = len(rows[member][0])
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        assert batch["labels"][row, length - 1] == end
        assert (batch["labels"][row, length:] == -100).all()
        assert (batch["input_ids"][row, length:] == end).all()


@pytest.mark.parametrize("pad_id", [0, 5, 511])
def test_the_pad_id_changes_nothing(rows: list[Document], pad_id: int, tmp_path: Path) -> None:
    """Padding is never looked at: any id there gives the loss of the documents alone."""
    model: Any = model_of()
    batch = Collate(store_of(tmp_path, rows), "padded", pad_id)([np.array([n]) for n in (0, 1, 2, 3)])
    del batch["documents"]
    loss = model(**batch, num_items_in_batch=torch.tensor(1)).loss
    alone = 0.0
    for ids, trained in rows[:4]:
        tokens = torch.from_numpy(ids.astype(np.int64))
        labels = torch.where(torch.from_numpy(trained), tokens, -100)
        alone += float(
            model(input_ids=tokens[None], labels=labels[None], num_items_in_batch=torch.tensor(1)).loss.detach()
        )
    assert float(loss.detach()) == pytest.approx(alone, rel=1e-5)


def test_packed_and_padded_batches_of_the_same_documents_cost_the_same(rows: list[Document], tmp_path: Path) -> None:
    """All documents in one step, packed and padded: one loss."""
    shared = splits_of(tmp_path, rows)
    packs = len(pack(np.array([len(ids) for ids, _ in rows]), np.arange(len(rows)), 256, 42))
    options: dict[str, Any] = {"max_steps": 3, "num_epochs": 3}
    packed = small_run(tmp_path / "a", shared, global_batch_size=packs, micro_batch_size=1, **options)
    padded = small_run(tmp_path / "b", shared, packing=False, global_batch_size=12, micro_batch_size=4, **options)
    assert packed.losses == pytest.approx(padded.losses, abs=1e-5)
