"""Excerpts of long documents: what the quick proofs see of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import model_of, small_run, splits_of

from dumbo.verify import at_start, excerpts
from dumbo.verify.excerpts import excerpts_of

GENERATOR = np.random.default_rng(3)
IDS = [GENERATOR.integers(0, 256, length).astype(np.int32) for length in (12, 300, 300, 300)]
TRAINED = [np.arange(12) >= 4, np.arange(300) >= 250, np.arange(300) >= 2, np.arange(300) >= 297]


def test_half_of_an_excerpt_is_context(tmp_path: Path) -> None:
    """Written by hand: 64 tokens; from 32 before the first trained one, but not past the end."""
    store = splits_of(tmp_path, list(zip(IDS, TRAINED, strict=True))).train.store
    short = excerpts_of(store, 64)
    assert short.lengths.tolist() == [12, 64, 64, 64]
    for document, start in enumerate((0, 218, 0, 236)):
        end = min(start + 64, len(IDS[document]))
        assert short.ids(document).tolist() == IDS[document][start:end].tolist()
        assert short.trained(document).tolist() == TRAINED[document][start:end].tolist()
        wanted = np.where(TRAINED[document], IDS[document], -100)[start:end]
        assert short.labels(document).tolist() == wanted.tolist()
    assert short.labelled.tolist() == [8, 32, 62, 3]
    assert short.trained_tokens(np.array([1, 3])) == 35
    assert str(short.source(2)) == str(store.source(2))


def test_an_excerpt_does_not_begin_with_a_trained_token(tmp_path: Path) -> None:
    """The whole document is trained but for its first token and a gap that the excerpt begins in."""
    trained = np.ones(300, bool)
    trained[:290] = False
    trained[100] = True  # the first; 32 before it nothing is trained
    store = splits_of(tmp_path, [(IDS[1], trained), (IDS[2], trained)]).train.store
    assert excerpts_of(store, 2).trained(0).tolist() == [False, True]
    assert excerpts_of(store, 1).trained(0).tolist() == [False]


def test_short_documents_are_left_alone(tmp_path: Path) -> None:
    store = splits_of(tmp_path, list(zip(IDS, TRAINED, strict=True))).train.store
    assert excerpts_of(store, 300) is store


def test_some_documents_are_shorter_still(tmp_path: Path) -> None:
    store = excerpts_of(splits_of(tmp_path, list(zip(IDS, TRAINED, strict=True))).train.store, 300, {2: 8, 0: 99})
    assert store.lengths.tolist() == [12, 300, 8, 300]
    assert store.ids(2).tolist() == IDS[2][:8].tolist()
    assert store.trained(2).tolist() == TRAINED[2][:8].tolist()
    assert store.ids(1).tolist() == IDS[1].tolist()
    assert store.labelled.tolist() == [8, 50, 6, 3]


LONG = [(ids[:250], np.arange(250) >= first) for ids, first in zip(IDS[1:], (200, 2, 240), strict=True)]


def test_what_is_not_computed_as_in_training_is_proven_on_short_excerpts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No document is too long to be seen whole: the first batch is, once. Other proofs see 48 tokens of each document, and of the
    first half of an accumulation as much as has a sixteenth of the second's trained tokens."""
    monkeypatch.setattr(at_start, "SHORT", 48)
    held: list[int] = []
    model = model_of(vocab_size=256)
    forward = model.lm_head.forward
    model.lm_head.forward = lambda hidden: (held.append(hidden.shape[:-1].numel()), forward(hidden))[1]
    run = small_run(tmp_path / "run", splits_of(tmp_path, LONG), model=model, max_steps=1, num_epochs=3, verify=True)
    assert any("accumulation 1 = 2" in proof for proof in run.facts["proofs"]), run.facts["proofs"]
    assert not any("excerpts" in proof for proof in run.facts["proofs"])
    first_batch, head, one, two, step = [750], [3 * 48] * 2, [2 + 48], [2, 48], 750
    assert held[3:] == [*first_batch, *head, *one, *two, step]  # before that the probe of the packs


def test_a_run_of_long_documents_is_proven_on_excerpts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pass before the first step has logits of more than a document's excerpt; what trains is whole."""
    monkeypatch.setattr(excerpts, "MOST", 48)
    held: list[int] = []
    model = model_of(vocab_size=256)
    forward = model.lm_head.forward
    model.lm_head.forward = lambda hidden: (held.append(hidden.shape[:-1].numel()), forward(hidden))[1]
    splits = splits_of(tmp_path, LONG)
    run = small_run(tmp_path / "run", splits, model=model, max_steps=2, num_epochs=3, verify=True)
    assert any("accumulation 1 = 2" in proof for proof in run.facts["proofs"]), run.facts["proofs"]
    assert len(held) > 5
    assert sum(count >= 250 for count in held) == 2, held  # the two steps
    assert torch.isfinite(torch.tensor(run.losses)).all()
