"""The proofs on the first batch can fail: each planted mistake ends a training with exit code 4 before its first step."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from proving import SMALL
from small_runs import documents, small_run, splits_of, tiny_tokenizer

import dumbo.cli
from dumbo.errors import ProofFailed
from dumbo.verify.first_batch import _looked_at, documents_of, tokens_proof

PLANTED = Path(__file__).parent / "planted"
WORDS = [
    *SMALL, "run_dir=run", "trainer.max_steps=1", "trainer.num_samples=0", "trainer.num_answers=0", "trainer.eval_at_start=false",
    "dataset.limit=64",
]  # fmt: skip
BF16 = ["trainer.precision=bf16"]
BY_PATCH: list[tuple[str, list[str], str]] = [
    ("adapter_not_zero", ["patch=[lora,planted]"], "The first batch's loss is "),
    (
        "frozen",
        ["patch=[planted]"],
        "patch.planted takes 1 parameters out of training (model.layers.0.mlp.down_proj.weight",
    ),
    (
        "detached",
        ["patch=[planted]"],
        "Gradients do not flow: model.layers.0.mlp.gate_proj.weight, model.layers.0.mlp.up_proj.weight and 2 more",
    ),
    ("loss_off_by_a_percent", ["patch=[planted]"], "The first batch's loss is "),
    ("gradient_not_finite", ["patch=[planted]"], "Gradients of the first batch are not finite: "),
    ("gradient_zero", ["patch=[lora,planted]"], "would not learn"),
    ("weights_rounded", ["patch=[planted]"], "The first batch's loss is "),
    ("adapter_not_zero", ["patch=[lora,planted]", *BF16], "is from float32"),
    ("loss_off_by_a_percent", ["patch=[planted]", *BF16], "is from float32"),
    (
        "loss_off_by_a_percent",
        ["patch=[lora,planted]", "patch.lora.init=random", *BF16],
        "The loss is not that of the model's logits",
    ),
]
OFTEN = 2


@pytest.fixture(autouse=True)
def _own_prepared_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUMBO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(*words: str) -> tuple[int, str]:
        code = dumbo.cli.main([*WORDS, *words])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return call


def facts() -> dict[str, Any]:
    return json.loads(Path("run/run.json").read_text())


@pytest.mark.parametrize(
    ("bug", "words", "said"),
    [
        pytest.param(*case, id=f"{case[0]}-{len(case[1])}", marks=[] if n < OFTEN else pytest.mark.full)
        for n, case in enumerate(BY_PATCH)
    ],
)
def test_a_patch_that_changes_what_it_must_not(bug: str, words: list[str], said: str, train: Any) -> None:
    code, shown = train(f"--config-dir={PLANTED}", *words, f"patch.planted.bug={bug}")
    assert code == 4, shown
    assert said in shown
    assert facts()["status"] == "failed"
    assert not Path("run/metrics.jsonl").exists()


def test_what_is_coarser_on_purpose_is_told(train: Any) -> None:
    code, shown = train(
        f"--config-dir={PLANTED}",
        "patch=[planted]",
        "patch.planted.bug=weights_rounded",
        "patch.planted.meant=bf16 weights",
    )
    assert code == 0, shown
    told = [proof for proof in facts()["proofs"] if proof.startswith("first batch's loss")]
    assert len(told) == 1
    assert told[0].endswith(": reported, not judged (patch.planted: bf16 weights)")


def test_what_is_right_is_shown_with_its_cost(train: Any) -> None:
    code, shown = train("patch=[lora,gradient_checkpointing]", "patch.lora.rank=4")
    assert code == 0, shown
    proofs = facts()["proofs"]
    assert any(proof.startswith("first batch's loss ") and "= unpatched to " in proof for proof in proofs), proofs
    assert "gradients reach 28 of 28 tensors that train, no other" in proofs
    assert any("labels, bos and end tokens are right in " in proof for proof in proofs)
    assert 0 < facts()["proof_seconds"] < 12  # 2% of a run of ten minutes


@pytest.mark.full
def test_no_proofs_no_cost(train: Any) -> None:
    code, shown = train("verify.mode=off")
    assert code == 0, shown
    assert "proof_seconds" not in facts()


@pytest.mark.full
@pytest.mark.parametrize(
    "words",
    [
        ["patch=[lora]", "patch.lora.init=random"],
        ["patch=[freeze]", "patch.freeze.train=[norm]"],
        ["patch=[lora]", "patch.lora.init=pissa", "patch.lora.use_dora=true"],
        ["patch=[lora]", "patch.lora.modules_to_save=[lm_head]"],
        ["patch=[lora]", "patch.lora.modules_to_save=[embed_tokens]"],
        ["patch=[chunked_loss]", "trainer.packing=false"],
        ["trainer.extra.label_smoothing_factor=0.1"],
        ["trainer.precision=bf16", "patch=[lora]"],
        ["trainer.precision=bf16", "patch=[chunked_loss]", "trainer.packing=false"],
        ["trainer.precision=bf16", "trainer.extra.label_smoothing_factor=0.1"],
    ],
    ids=lambda words: words[-1],
)
def test_what_is_meant_so_passes(words: list[str], train: Any) -> None:
    code, shown = train(*words)
    assert code == 0, shown
    if "patch.lora.init=random" in words:
        assert "first batch's loss not compared: patch.lora init=random" in shown


# ---- the tokens of a batch -----------------------------------------------------------------------------------------


def batch_of(rows: list[tuple[list[int], list[int]]], layout: str) -> dict[str, torch.Tensor]:
    """(ids, places of the labels) in one layout, by hand."""
    labels = [[token if place in places else -100 for place, token in enumerate(ids)] for ids, places in rows]
    if layout == "tokens":
        joined = [token for ids, _ in rows for token in ids]
        return {
            "input_ids": torch.tensor([joined]),
            "labels": torch.tensor([[label for row in labels for label in row]]),
            "position_ids": torch.tensor([[place for ids, _ in rows for place in range(len(ids))]]),
        }
    width = max(len(ids) for ids, _ in rows) + 3
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    lab = torch.tensor([row + [-100] * (width - len(row)) for row in labels])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows])
    return {"input_ids": ids, "labels": lab, "attention_mask": mask}


@pytest.mark.parametrize("layout", ["tokens", "padded"])
def test_tokens_of_a_batch(layout: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    words = tokenizer.encode(" one two three", add_special_tokens=False)[:3]
    good = ([bos, *words, end], [2, 3, 4])
    other = ([bos, *words, *words, end], [4, 5, 6, 7])
    assert "right in 2 documents" in tokens_proof(batch_of([good, other], layout), tokenizer)
    assert [len(ids) for ids, _ in documents_of(batch_of([good, other], layout))] == [5, 8]
    wrong = {
        "twice": ([bos, bos, *words, end], [3, 4, 5]),
        "first token is trained": (good[0], [0, 2, 3, 4]),
        "would not learn to stop": (good[0], [2, 3]),
    }
    for said, row in wrong.items():
        with pytest.raises(ProofFailed, match=said):
            tokens_proof(batch_of([good, row], layout), tokenizer)
    shifted = batch_of([good, other], layout)
    shifted["labels"] = shifted["labels"].roll(1, -1)
    with pytest.raises(ProofFailed, match="The labels of the first batch are not its tokens"):
        tokens_proof(shifted, tokenizer)


def test_an_end_token_that_the_mask_has_lost(data: Path, tmp_path: Path) -> None:
    """Also where the formatter does not say what is trained, so that the mask cannot be proven from the rows."""
    rows = [(ids, trained & (np.arange(len(ids)) < len(ids) - 1)) for ids, trained in documents(data, 8)]
    with pytest.raises(ProofFailed, match="would not learn to stop"):
        small_run(tmp_path / "run", splits_of(tmp_path, rows), verify=True, max_steps=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_a_percent_off_what_the_logits_say(
    precision: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing is known of the model before its patches."""
    from dumbo.trainer.engine import Engine

    right = Engine.compute_loss
    monkeypatch.setattr(Engine, "compute_loss", lambda self, *args, **kwargs: right(self, *args, **kwargs) * 1.01)
    splits = splits_of(tmp_path, documents(data, 8))
    with pytest.raises(ProofFailed, match=r"The loss is not that of the model's logits: \d\.\d+, and from them"):
        small_run(tmp_path / "run", splits, verify=True, max_steps=1, precision=precision)


def test_the_model_is_left_as_it_was(data: Path, tmp_path: Path) -> None:
    """Weights bit by bit, though a step was taken on them: LoRA's A has no gradient before it."""
    from dumbo.patch.lora import LoRA

    kept: dict[str, torch.Tensor] = {}

    def keep(session: Any) -> None:
        right = session._prove

        def prove(trainer: Any) -> None:
            before = {name: p.detach().clone() for name, p in session.model.named_parameters()}
            state = torch.get_rng_state()
            right(trainer)
            kept.update(before)
            assert torch.equal(state, torch.get_rng_state())
            for name, p in session.model.named_parameters():
                assert torch.equal(p, before[name]), name
                assert p.grad is None

        session._prove = prove

    from small_runs import model_of

    splits = splits_of(tmp_path, documents(data, 8))
    run = small_run(
        tmp_path / "run", splits, model=LoRA(rank=2).apply(model_of()), verify=True, before=keep, max_steps=1
    )
    assert any("lora_A" in name for name in kept)
    assert any("gradients reach 28 of 28" in proof for proof in run.facts["proofs"])


class _Aside(torch.nn.Module):
    """An adapter that no batch reaches, as on the vision tower of a model that is trained on text."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.register_module(name, torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("name", "remedy"), [("lora_A", "patch.lora.target_modules=[NAME,…]"), ("tower", "patch=[freeze]")]
)
def test_what_no_gradient_reaches_is_told_how_to_leave_it_out(name: str, remedy: str) -> None:
    model = torch.nn.ModuleDict({"seen": torch.nn.Linear(2, 2), "aside": _Aside(name)})
    model["seen"](torch.ones(1, 2)).sum().backward()
    with pytest.raises(ProofFailed) as failed:
        _looked_at(model)
    assert remedy in str(failed.value)


def test_planted_bugs_are_those_of_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(PLANTED), *sys.path])
    import planted

    assert {bug for bug, _, _ in BY_PATCH} <= set(planted.BUGS)
