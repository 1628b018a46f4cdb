"""The numbers of `trainer=sft` against a plain PyTorch loop that shares nothing with it but the order of the data.

The loop takes each document alone, (1, T) with no padding at all, sums its own cross-entropy over the trained
tokens, divides by the trained tokens of the step, clips by hand, and steps torch's AdamW on its own cosine schedule.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import Document, documents, model_of, small_run, splits_of

STEPS, GLOBAL, WARMUP, LR, CLIP, SEED = 9, 4, 3, 1e-2, 0.5, 7


def plain_loop(model: Any, rows: list[Document], steps: list[list[int]]) -> list[dict[str, float]]:
    """Trains `model` in place. `steps`: the documents of each step."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    model.train()
    seen = []
    for number, members in enumerate(steps):
        lr = LR * (
            number / WARMUP if number < WARMUP else 0.5 * (1 + math.cos(math.pi * (number - WARMUP) / (STEPS - WARMUP)))
        )
        trained = sum(int(rows[member][1][1:].sum()) for member in members)
        total = 0.0
        for member in members:
            ids = torch.from_numpy(rows[member][0].astype(np.int64))
            wanted = torch.from_numpy(rows[member][1])[1:]
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
            surprise = -torch.log_softmax(logits.double(), -1)[torch.arange(len(ids) - 1), ids[1:]]
            loss = surprise[wanted].sum() / trained
            loss.backward()
            total += float(loss.detach())
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in trainable if p.grad is not None))
        for p in trainable:
            if p.grad is not None and norm > CLIP:
                p.grad.mul_(CLIP / (norm + 1e-6))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        seen.append({"loss": total, "grad_norm": norm, "lr": lr})
    return seen


def steps_of(rows: list[Document], packing: bool, max_seq_len: int) -> list[list[int]]:
    """The documents of each optimizer step, from the sampler and the packs."""
    from dumbo.batch import Batch
    from dumbo.prepare.packing import pack
    from dumbo.trainer.sampler import GlobalBatches

    lengths = np.array([len(ids) for ids, _ in rows])
    packs = pack(lengths, np.arange(len(rows)), max_seq_len, SEED) if packing else None
    size = len(packs) if packs is not None else len(rows)
    sampler = GlobalBatches(size, Batch.of(GLOBAL, 1, 1), SEED, None if packing else lengths)
    found: list[list[int]] = []
    for epoch in range(STEPS):
        for step in sampler.global_batches(epoch):
            found.append([int(d) for e in step for d in (packs[int(e)] if packs is not None else [e])])
    return found[:STEPS]


@pytest.fixture(scope="module")
def rows(data: Path) -> list[Document]:
    found = documents(data, 42)
    trained = [int(mask.sum()) for _, mask in found]
    assert max(trained) > 20 * min(trained), "documents should differ widely in trained tokens"
    return found


def prepared_model(kind: str) -> Any:
    model = model_of(seed=3)
    if kind == "lora":
        from dumbo.patch.lora import LoRA

        torch.manual_seed(5)
        model = LoRA(rank=4, alpha=8).apply(model)
    return model


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_every_step_equals_the_plain_loop(rows: list[Document], packing: bool, kind: str, tmp_path: Path) -> None:
    start = prepared_model(kind)
    plain = copy.deepcopy(start)
    wanted = plain_loop(plain, rows, steps_of(rows, packing, 256))
    assert wanted[-1]["loss"] < wanted[0]["loss"] - (0.5 if kind == "full" else 0.02), "the loop itself should learn"
    shared = splits_of(tmp_path, rows)
    for accumulation in (1, 2, 4):
        run = small_run(
            tmp_path / str(accumulation),
            shared,
            model=copy.deepcopy(start),
            packing=packing,
            lr=LR,
            warmup_steps=WARMUP,
            max_grad_norm=CLIP,
            seed=SEED,
            global_batch_size=GLOBAL,
            micro_batch_size=GLOBAL // accumulation,
            max_steps=STEPS,
        )
        assert [row["step"] for row in run.training_rows] == list(range(1, STEPS + 1))
        for row, expected in zip(run.training_rows, wanted, strict=True):
            for key in ("loss", "grad_norm", "lr"):
                assert row[key] == pytest.approx(expected[key], rel=1e-4 if key == "grad_norm" else 0, abs=1e-5), (
                    key,
                    row["step"],
                    accumulation,
                )
        ours, theirs = run.weights(), dict(plain.named_parameters())
        moved = 0.0
        for name, p in ours.items():
            assert torch.allclose(p, theirs[name], atol=0.02 * LR), (name, accumulation)
            moved = max(moved, float((p - dict(start.named_parameters())[name]).detach().abs().max()))
        assert moved > LR, "nothing was trained"


def test_an_accumulated_mean_of_means_is_not_that(rows: list[Document]) -> None:
    """The test above can fail: the old mistake, a mean of each micro batch's mean, is far from the plain loop."""
    for packing in (True, False):
        steps = steps_of(rows, packing, 256)
        members = max(steps, key=lambda step: max(rows[d][1].sum() for d in step) / min(rows[d][1].sum() for d in step))
        model = model_of(seed=3)
        wanted = plain_loop(copy.deepcopy(model), rows, [members])[0]["loss"]
        means = []
        for member in members:
            ids = torch.from_numpy(rows[member][0].astype(np.int64))
            labels = torch.where(torch.from_numpy(rows[member][1]), ids, -100)
            means.append(float(model(input_ids=ids[None], labels=labels[None]).loss.detach()))
        assert abs(sum(means) / len(means) - wanted) > 1e-3


def test_a_model_that_takes_no_loss_arguments(rows: list[Document], tmp_path: Path) -> None:
    """For a model that averages for itself the engine computes the loss: the same numbers."""
    start = model_of(seed=3)
    wanted = [row["loss"] for row in plain_loop(copy.deepcopy(start), rows, steps_of(rows, True, 256))]
    for accumulation in (1, 4):
        run = small_run(
            tmp_path / str(accumulation), splits_of(tmp_path, rows), model=copy.deepcopy(start), lr=LR, seed=SEED,
            warmup_steps=WARMUP, max_grad_norm=CLIP, micro_batch_size=GLOBAL // accumulation, max_steps=STEPS,
            before=_without_loss_arguments,
        )  # fmt: skip
        assert run.losses == pytest.approx(wanted, abs=1e-5)


def _without_loss_arguments(session: Any) -> None:
    make = session._trainer

    def made(batch: Any) -> Any:
        trainer = make(batch)
        trainer.model_accepts_loss_kwargs = False
        return trainer

    session._trainer = made
