"""Each proof can fail: a bug is planted where such bugs are made, and exactly the proof that looks for it fails.

The first few run at every commit, all of them in .ci/full.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from proving import failing, prove_all

Plant = Callable[[pytest.MonkeyPatch], None]


def _masked(change: Callable[[Any, Any], Any]) -> Plant:
    """The mask as the formatter makes it, changed."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        from dumbo.formatter import examples

        right = examples.marks

        def wrong(encodings: Any, rows: Any) -> Any:
            marked = right(encodings, rows)
            masks = np.split(marked.trained, np.cumsum([len(encoded.ids) for encoded in encodings])[:-1])
            changed = [change(encoded, mask.copy()) for encoded, mask in zip(encodings, masks, strict=True)]
            for mask in changed:
                mask[0] = False
            return replace(marked, trained=np.concatenate(changed))

        monkeypatch.setattr(examples, "marks", wrong)

    return plant


mask_shifted = _masked(lambda encoded, mask: np.roll(mask, 1))
mask_trains_user = _masked(lambda encoded, mask: np.ones_like(mask))
mask_one_too_many = _masked(lambda encoded, mask: mask | np.roll(mask, -1))


def _without_end(encoded: Any, mask: Any) -> Any:
    from small_runs import tiny_tokenizer

    return mask & (encoded.ids != tiny_tokenizer().eos_token_id)


end_unlabelled = _masked(_without_end)


def labels_of_next_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from dumbo.trainer.collate import Collate

    right = Collate._joined
    monkeypatch.setattr(Collate, "_joined", lambda self, documents: _rolled(*right(self, documents)))


def _rolled(ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return ids, labels.roll(-1)


def pack_not_isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    from dumbo.trainer import attention, layout

    right = attention.plan_of
    monkeypatch.setattr(attention, "plan_of", lambda bounds, device: right([0, bounds[-1]], device))
    monkeypatch.setattr(layout, "_isolated", lambda *args: True)  # and the quick proof has missed it


def first_document_seen_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """cu_seq_lens lose a border in training's batches; the probe's, of random documents, keep theirs."""
    from dumbo.prepare.store import Store
    from dumbo.trainer.collate import Collate

    right = Collate._tokens

    def wrong(self: Collate, documents: Any) -> dict[str, Any]:
        batch = right(self, documents)
        if isinstance(self.store, Store) and len(batch["cu_seq_lens_q"]) > 2:
            fewer = torch.cat([batch["cu_seq_lens_q"][:1], batch["cu_seq_lens_q"][2:]])
            batch |= {"cu_seq_lens_q": fewer, "cu_seq_lens_k": fewer}
        return batch

    monkeypatch.setattr(Collate, "_tokens", wrong)


def positions_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """With attention that tells documents apart by nothing else (rotary positions as such would not mind)."""
    from dumbo.trainer import collate

    monkeypatch.setattr(collate, "_positions", lambda lengths: np.arange(int(lengths.sum())))


def mean_per_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from dumbo.trainer.engine import Engine
    from dumbo.trainer.feeding import trained_tokens

    right = Engine.compute_loss

    def wrong(self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        return right(self, model, inputs, return_outputs, torch.tensor(trained_tokens(inputs)))

    monkeypatch.setattr(Engine, "compute_loss", wrong)


def divided_by_accumulation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from dumbo.trainer.engine import Engine

    right = Engine.training_step

    def wrong(self: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        return right(self, model, inputs, num_items_in_batch * 2)

    monkeypatch.setattr(Engine, "training_step", wrong)


def something_joins_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    from dumbo.trainer.engine import Engine

    right = Engine.compute_loss
    monkeypatch.setattr(Engine, "compute_loss", lambda self, *args, **kwargs: right(self, *args, **kwargs) + 0.01)


def bos_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for SmolLM2, whose bos opens every turn: a tokenizer that puts another one before the rendering."""
    from dumbo.formatter import examples
    from dumbo.formatter.encode import Encoded
    from dumbo.model.tiny import Tiny

    load, right = Tiny.load_tokenizer, examples.encode

    def with_bos(self: Tiny) -> Any:
        tokenizer = load(self)
        tokenizer.bos_token = "<|im_start|>"
        return tokenizer

    def wrong(rows: Any, tokenizer: Any) -> list[Encoded]:
        bos = np.array([tokenizer.bos_token_id], np.int32)
        none = np.zeros(1, np.int64)
        return [
            Encoded(np.concatenate([bos, e.ids]), np.concatenate([none, e.starts]), np.concatenate([none, e.ends]))
            for e in right(rows, tokenizer)
        ]

    monkeypatch.setattr(Tiny, "load_tokenizer", with_bos)
    monkeypatch.setattr(examples, "encode", wrong)


def _saved(change: Callable[[Path], None]) -> Plant:
    """What is on disk after saving the tokenizer, changed."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        from transformers import PreTrainedTokenizerFast

        right = PreTrainedTokenizerFast.save_pretrained

        def wrong(self: Any, folder: Any, **kwargs: Any) -> Any:
            found = right(self, folder, **kwargs)
            change(Path(folder))
            return found

        monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", wrong)

    return plant


def _trimmed(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("message.content", "message.content | trim"))


def _digits_joined(folder: Path) -> None:
    file = folder / "tokenizer.json"
    facts = json.loads(file.read_text())
    facts["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    file.write_text(json.dumps(facts))


template_changed = _saved(_trimmed)
saved_splits_otherwise = _saved(_digits_joined)


def padding_attended(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.masking_utils import AttentionMaskInterface

    from dumbo.trainer import attention

    right = attention.register

    def wrong() -> None:
        right()
        AttentionMaskInterface.register(attention.NAME, lambda *args, **kwargs: None)

    monkeypatch.setattr(attention, "register", wrong)


def padding_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    from dumbo.trainer.collate import Collate

    right = Collate._empty

    def wrong(self: Collate, rows: int, width: int) -> Any:
        ids, labels = right(self, rows, width)
        return ids, torch.full_like(labels, self.pad_id)

    monkeypatch.setattr(Collate, "_empty", wrong)


def _loaded(change: Callable[[Any], None]) -> Plant:
    """The model as its loader gives it, changed."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        from dumbo.model.tiny import Tiny

        right = Tiny.load_model

        def wrong(self: Tiny, *args: Any, **kwargs: Any) -> Any:
            model = right(self, *args, **kwargs)
            change(model)
            return model

        monkeypatch.setattr(Tiny, "load_model", wrong)

    return plant


def _freeze_one(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)


def _detach_one(model: Any) -> None:
    model.model.layers[0].self_attn.v_proj.register_forward_hook(lambda module, given, out: out.detach())


frozen_by_mistake = _loaded(_freeze_one)
detached = _loaded(_detach_one)


def not_in_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    from dumbo.trainer.engine import Engine

    right = Engine.create_optimizer

    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        optimizer = right(self, *args, **kwargs)
        optimizer.param_groups[0]["params"].pop()
        return optimizer

    monkeypatch.setattr(Engine, "create_optimizer", wrong)


def base_trains_beside_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    from dumbo.patch.lora import LoRA

    right = LoRA.apply

    def wrong(self: LoRA, model: Any) -> Any:
        wrapped = right(self, model)
        next(p for name, p in wrapped.named_parameters() if name.endswith("norm.weight")).requires_grad_(True)
        return wrapped

    monkeypatch.setattr(LoRA, "apply", wrong)


CASES: list[tuple[Plant, str, list[str], str]] = [
    (mask_shifted, "mask", [], "is not among the trained tokens|too many|missing"),
    (positions_go_on, "packed", ["model.attn_implementation=sdpa"], "cannot keep packed documents apart"),
    (mean_per_micro_batch, "accumulation", [], "times the gradient of one large batch"),
    (frozen_by_mistake, "gradients", [], "frozen, though they should train: model.layers.1.mlp.up_proj.weight"),
    (mask_trains_user, "mask", [], "mask is wrong at"),
    (mask_one_too_many, "mask", [], "1 too many"),
    (labels_of_next_token, "mask", [], "another token than the one that stands there"),
    (pack_not_isolated, "packed", [], "changes a document's logits"),
    (first_document_seen_by_all, "packed", [], "depends on what it is packed with"),
    (mean_per_micro_batch, "accumulation", ["trainer.precision=bf16"], "times the gradient of one large batch"),
    (divided_by_accumulation_too, "accumulation", [], "0.5000 times the gradient"),
    (something_joins_the_loss, "loss", [], "by hand it is"),
    (bos_doubled, "tokenisation", [], r"begins with <\|im_start\|> twice"),
    (end_unlabelled, "tokenisation", [], "no trained end token"),
    (template_changed, "tokenisation", [], "chat template on disk"),
    (saved_splits_otherwise, "tokenisation", [], "gives other tokens"),
    (padding_attended, "padding", [], "padding is attended to"),
    (padding_labelled, "padding", [], "bear a loss when padded on the right"),
    (detached, "gradients", [], "without a gradient in 2 steps: model.layers.0.self_attn.v_proj.weight"),
    (not_in_the_optimizer, "gradients", [], "not in the optimizer"),
    (base_trains_beside_lora, "gradients", ["patch=[lora]"], "train, though they should not"),
]
NAMES = {id(value): name for name, value in list(globals().items()) if callable(value)}
OFTEN = 4
"""So many of them run at every commit."""


@pytest.mark.parametrize(
    ("plant", "key", "overrides", "said"),
    [
        pytest.param(*case, id=NAMES[id(case[0])], marks=[] if number < OFTEN else pytest.mark.full)
        for number, case in enumerate(CASES)
    ],
)
def test_exactly_the_proof_that_looks_for_it_fails(
    plant: Plant, key: str, overrides: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    plant(monkeypatch)
    failed = failing(prove_all(tmp_path, overrides))
    assert list(failed) == [key], failed
    assert re.search(said, failed[key]), failed[key]


@pytest.mark.parametrize("overrides", [[], pytest.param(["patch=[lora]"], marks=pytest.mark.full)])
def test_without_a_bug_all_hold(overrides: list[str], tmp_path: Path) -> None:
    found = prove_all(tmp_path, overrides)
    assert not failing(found)
    assert all(proof.passed for several in found.values() for proof in several)
