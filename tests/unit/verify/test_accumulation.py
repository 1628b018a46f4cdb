"""The proof of the accumulation on a trainer of its own: without dropout, in training mode, and without a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import Document, documents, model_of, small_run, splits_of
from torch import nn

from dumbo.errors import ProofFailed
from dumbo.patch.compile import Compile, compiled_layers
from dumbo.trainer.feeding import trained_tokens
from dumbo.trainer.session import SftTrainer
from dumbo.verify import micro_batches
from dumbo.verify.no_dropout import without_dropout
from dumbo.verify.quick import of_excerpts, untouched


@pytest.fixture(scope="module")
def rows(data: Path) -> list[Document]:
    return documents(data, 8, longest=100)


def trainer_of(folder: Path, rows: list[Document], model: Any, max_len: int = 256, **options: Any) -> Any:
    """A trainer that is equipped and has not trained."""
    kept: list[Any] = []

    class _EnoughError(Exception):
        pass

    def before(session: Any) -> None:
        make = session._trainer

        def made(batch: Any) -> Any:
            kept.append(make(batch))
            raise _EnoughError

        session._trainer = made

    with pytest.raises(_EnoughError):
        small_run(
            folder / "run",
            splits_of(folder, rows, max_seq_len=max_len),
            model=model,
            before=before,
            max_steps=1,
            **options,
        )
    return kept[0]


def prove(trainer: Any, tolerance: float = 1e-4) -> str:
    return micro_batches.accumulation_proof(trainer, trainer.collate, [np.array([0]), np.array([1])], tolerance)


def test_what_it_compares_is_the_mean_over_trained_tokens(rows: list[Document], tmp_path: Path) -> None:
    """Both sides, against cross entropies of each document alone."""
    model = model_of()
    trainer = trainer_of(tmp_path, rows, model)
    losses, tokens = torch.zeros(()), 0
    for ids, trained in rows[:2]:
        logits = model(input_ids=torch.from_numpy(ids).long()[None]).logits[0, :-1]
        wanted = torch.from_numpy(np.where(trained, ids, -100)).long()[1:]
        losses = losses + nn.functional.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum")
        tokens += int((wanted != -100).sum())
    mean = losses / tokens
    mean.backward()
    expected = mean.item()
    norm = float(torch.stack([p.grad.norm() for p in model.parameters()]).norm())
    model.zero_grad()
    with untouched(trainer):
        plain = micro_batches._plainly(trainer, trainer.collate([np.array([0]), np.array([1])]))
        steps = micro_batches._as_trained(trainer, [trainer.collate([np.array([n])]) for n in (0, 1)])
    assert plain == pytest.approx((expected, norm), rel=1e-5)
    assert steps == pytest.approx((expected, norm), rel=1e-5)


def test_dropout_is_off_in_it_and_would_matter(rows: list[Document], tmp_path: Path, monkeypatch: Any) -> None:
    trainer = trainer_of(tmp_path, rows, model_of(attention_dropout=0.4))
    seen: list[tuple[bool, float]] = []
    right = type(trainer).compute_loss

    def compute_loss(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((model.training, model.model.layers[0].self_attn.attention_dropout))
        return right(self, model, *args, **kwargs)

    monkeypatch.setattr(type(trainer), "compute_loss", compute_loss)
    assert "accumulation 1 = 2" in prove(trainer)
    assert seen == [(True, 0.0)] * 3
    assert trainer.model.model.layers[0].self_attn.attention_dropout == 0.4
    monkeypatch.setattr(micro_batches, "without_dropout", lambda model: torch.enable_grad())
    with pytest.raises(ProofFailed):
        prove(trainer)


def test_all_is_as_it_was(rows: list[Document], tmp_path: Path) -> None:
    model = model_of(attention_dropout=0.1)
    trainer = trainer_of(tmp_path, rows, model)
    model.train()
    model.model.norm.eval()  # a mode of its own
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    forward = model.forward = type(model).forward.__get__(model)  # as Liger puts it
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    random, pending, watch = torch.random.get_rng_state(), trainer.pending, trainer.watch
    counters = vars(trainer.counters).copy()
    prove(trainer)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert model.forward is forward
    assert trainer.pending is pending
    assert not pending
    assert trainer.watch is watch
    assert not watch._micro
    assert vars(trainer.counters) == counters
    assert [module for module in model.modules() if not module.training] == [model.model.norm]
    for name, parameter in model.named_parameters():
        assert parameter.grad is gradients[name]
        assert torch.equal(parameter.grad, torch.full_like(parameter, 0.5))
        assert torch.equal(parameter, weights[name])


def test_all_is_as_it_was_after_a_failure(rows: list[Document], tmp_path: Path, monkeypatch: Any) -> None:
    model = model_of(attention_dropout=0.1)
    trainer = trainer_of(tmp_path, rows, model)
    right = type(trainer).compute_loss

    def own_mean(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return right(self, model, inputs, num_items_in_batch=torch.tensor(trained_tokens(inputs)))

    monkeypatch.setattr(type(trainer), "compute_loss", own_mean)
    pending, watch = trainer.pending, trainer.watch
    with pytest.raises(ProofFailed):
        prove(trainer)
    assert "forward" not in vars(model)
    assert (trainer.pending, trainer.watch) == (pending, watch)
    assert model.config.attention_dropout == model.model.layers[0].self_attn.attention_dropout == 0.1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_documents_that_training_has_no_room_for_together(rows: list[Document], tmp_path: Path) -> None:
    """One pack a micro batch, compiled, and documents as long as it: the halves are compiled in training's one shape."""
    cut = [(ids[:40], np.arange(40) >= 10 * n) for n, (ids, _) in enumerate(rows[:2])]
    shapes: set[int] = set()
    model = Compile(backend="eager").apply(model_of())
    model.model.layers[0].register_forward_pre_hook(lambda module, given: shapes.add(given[0].shape[1]))
    trainer = trainer_of(tmp_path, cut, model, max_len=40, micro_batch_size=1)
    shapes.clear()
    assert "accumulation 1 = 2" in prove(trainer)
    assert shapes == {40, 80}
    assert compiled_layers(model) == list(model.model.layers)


@pytest.fixture
def mean_of_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that takes each micro batch's own mean, and the mean of those of two."""
    right = SftTrainer.compute_loss

    def compute_loss(
        self: Any, model: Any, inputs: Any, *args: Any, num_items_in_batch: Any = None, **more: Any
    ) -> Any:
        trained = trained_tokens(inputs)
        parts = 1 if trained == int(num_items_in_batch) else 2
        return right(self, model, inputs, *args, num_items_in_batch=torch.tensor(trained * parts), **more)

    monkeypatch.setattr(SftTrainer, "compute_loss", compute_loss)


def alike(rows: list[Document], amount: int) -> list[Document]:
    """Rows of 64 tokens, 63 of them trained."""
    return [(np.resize(ids, 64).astype(np.int32), np.arange(64) > 0) for ids, _ in rows[:amount]]


@pytest.mark.usefixtures("mean_of_means")
def test_halves_of_alike_documents_are_made_unequal(rows: list[Document], tmp_path: Path) -> None:
    """Of two rows alike the mean of means is the mean, until the first is cut to a sixteenth: 3 tokens, 2 of them trained."""
    trainer = trainer_of(tmp_path, alike(rows, 2), model_of())
    assert "accumulation 1 = 2" in prove(trainer)
    unlike = [np.array([0]), np.array([1])]
    with of_excerpts(trainer, 1024, micro_batches.unequal(unlike)):
        assert trainer.store.lengths.tolist() == [3, 64]
        assert [trainer.store.trained_tokens(one) for one in unlike] == [2, 63]
        with pytest.raises(ProofFailed, match="Gradient accumulation changes the numbers"):
            prove(trainer, micro_batches.ACCUMULATION[True])
    assert trainer.collate.store.lengths.tolist() == [64, 64]


@pytest.mark.usefixtures("mean_of_means")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_alike_documents_does_not_begin_with_it(precision: str, rows: list[Document], tmp_path: Path) -> None:
    splits = splits_of(tmp_path, alike(rows, 8))
    with pytest.raises(ProofFailed, match="Gradient accumulation changes the numbers"):
        small_run(tmp_path / "run", splits, max_steps=1, verify=True, precision=precision)


def test_halves_that_differ_stay_whole(rows: list[Document], tmp_path: Path) -> None:
    """3 and 50 trained tokens of 60; of one trained token each there is no half."""
    store = splits_of(tmp_path, [(rows[0][0][:60], np.arange(60) >= first) for first in (57, 10, 59)]).train.store
    assert store.labelled.tolist() == [3, 50, 1]
    assert micro_batches.unequal([np.array([0]), np.array([1])])(store) == {}
    assert micro_batches.unequal([np.array([1]), np.array([0])])(store) == {1: 2}
    assert micro_batches.unequal([np.array([2]), np.array([2])])(store) == {2: 2}


def test_a_loss_that_is_no_number_does_not_pass(rows: list[Document], tmp_path: Path) -> None:
    model = model_of()
    trainer = trainer_of(tmp_path, rows, model)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ProofFailed):
        prove(trainer)


def test_bf16_computes_as_training_does(rows: list[Document], tmp_path: Path, monkeypatch: Any) -> None:
    trainer = trainer_of(tmp_path, rows, model_of(), precision="bf16")
    seen: list[torch.dtype] = []
    head = trainer.model.lm_head
    head.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    assert "accumulation 1 = 2" in prove(trainer, 0.05)
    assert seen == [torch.bfloat16] * 3


def test_every_kind_of_dropout_is_found() -> None:
    class Config:
        def __init__(self) -> None:
            self.attention_dropout, self.resid_pdrop, self.hidden_size = 0.1, 0.2, 0.5

    class Layer(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.config = config
            self.inner = nn.ModuleDict({"default": nn.Dropout(0.3)})
            self.drop_path, self.layerdrop, self.router_jitter_noise = 0.4, 0.5, 0.6
            self.dropout, self.eps, self.drop_last = nn.Dropout1d(0.7), 0.9, True

    layer = Layer(Config())

    def rates() -> list[float]:
        c, m = layer.config, layer
        return [
            c.attention_dropout,
            c.resid_pdrop,
            m.inner["default"].p,
            m.drop_path,
            m.layerdrop,
            m.router_jitter_noise,
            m.dropout.p,
        ]

    before = rates()
    with without_dropout(layer):
        assert rates() == [0.0] * 7
        assert (layer.config.hidden_size, layer.eps, layer.drop_last) == (0.5, 0.9, True)
    assert rates() == before == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
