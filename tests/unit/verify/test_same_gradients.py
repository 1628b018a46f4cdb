"""Gradients held against a reference: what is compared, what is not, and that nothing compared proves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import VOCAB, model_of

from dumbo.patch.lora import LoRA
from dumbo.verify.determinism import apart_by, losses_of
from dumbo.verify.first_batch import excused
from dumbo.verify.gradient_files import compared_gradients, read, written
from dumbo.verify.gradients import _faults
from dumbo.verify.loss import allowed
from dumbo.verify.proof import Tolerance, rms_tolerance
from dumbo.verify.references import _same_gradients, gradient_tolerance
from dumbo.verify.unpatched import OnDevice

IDS = torch.randint(0, VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))


def gpt2() -> Any:
    """Its layers hold (in, out)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


def backward(model: Any) -> Any:
    model.eval()(input_ids=IDS, labels=IDS).loss.backward()
    return model


def reference_of(model: Any, folder: Path) -> dict[str, Any]:
    backward(model)
    file = folder / "reference.safetensors"
    found = read(file, written({name: p.grad for name, p in model.named_parameters()}, file))
    model.zero_grad()
    return found


def test_a_gpu_without_a_number_is_the_one_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate says "cuda", tensors say "cuda:0": copies of the weights would have no gradient. Here with CPUs."""
    from accelerate import PartialState

    PartialState()
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("cpu", 0))
    model = model_of()
    OnDevice(model)(IDS[:1]).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_nothing_compared_is_no_proof() -> None:
    nothing = {"compared": 0, "derived": 0, "trained": 7, "gradients": 0.0, "worst": "none"}
    proof = _same_gradients("lora", nothing, Tolerance(1.0, ""), "")
    assert (proof.name, proof.passed) == ("patches = reference, gradients", None)
    assert "none of the 7 tensors that train has a counterpart" in proof.detail
    some = _same_gradients("lora", {**nothing, "compared": 4}, Tolerance(1.0, ""), "")
    assert some.passed
    assert "gradients of 4 of 7 tensors that train (the others have no counterpart)" in some.compared


@pytest.mark.parametrize(("make", "amount"), [(gpt2, 16), (model_of, 28)])
def test_adapters_of_layers_of_either_form(make: Any, amount: int, tmp_path: Path) -> None:
    model = make()
    reference = reference_of(model, tmp_path)
    wrapped = backward(LoRA(rank=2).apply(model))
    found = compared_gradients(wrapped, reference)
    assert (found["compared"], found["derived"], found["trained"]) == (amount, amount, amount)
    assert found["gradients"] < 1e-5
    name, up = next((name, p) for name, p in wrapped.named_parameters() if "lora_B" in name)
    up.grad *= 1.2
    found = compared_gradients(wrapped, reference)
    assert found["gradients"] == pytest.approx(0.2, rel=1e-3)
    assert name.endswith(found["worst"])


def test_an_embedding_that_the_head_no_longer_shares(tmp_path: Path) -> None:
    """The reference has the gradient of both in one."""
    model = model_of()
    reference = reference_of(model, tmp_path)
    wrapped = backward(LoRA(rank=2, modules_to_save=["embed_tokens"]).apply(model))
    found = compared_gradients(wrapped, reference)
    assert found["gradients"] < 1e-5
    assert found["trained"] - found["compared"] <= 1


def test_no_order_of_sums_changes_learning_rates_or_tokens() -> None:
    row = {"step": 1, "loss": 2.0, "grad_norm": 1.0, "lr": 1e-3, "tokens": 100}
    assert apart_by([row], [{**row, "loss": 2.02}]) == pytest.approx(0.0099, rel=1e-2)
    for other in ({"lr": 1.001e-3}, {"tokens": 101}, {"step": 2}):
        assert apart_by([row], [{**row, **other}]) == float("inf")


def test_a_loss_that_is_no_number_is_said() -> None:
    """metrics.jsonl has null for it."""
    row = {"step": 1, "loss": None, "grad_norm": None, "lr": 1e-3, "tokens": 100}
    assert not apart_by([row], [row]) <= 1.0
    assert losses_of([row, {**row, "loss": 0.5}]) == "not a number, 0.5"


def test_half_precision_is_allowed_what_its_roundings_make() -> None:
    """Of 30 layers; seen on SmolLM2 in bf16: at most 0.013 between accumulations, 1e-7 between losses of 275 tokens."""
    assert rms_tolerance(torch.bfloat16, 30).value == pytest.approx(2**-7 * 61**0.5)
    assert rms_tolerance(torch.float32, 30).value == pytest.approx(4 * 2**-23 * 61**0.5)
    assert allowed(torch.bfloat16, 275).value == pytest.approx(4 * 2**-7 / 275**0.5, rel=1e-3)
    assert gradient_tolerance(torch.bfloat16, 30).value == pytest.approx(2 * 2**-7 * 121**0.5, rel=1e-3)  # below 0.2


def test_experts_that_no_token_was_sent_to_are_no_fault() -> None:
    one = lambda: torch.nn.Linear(2, 2, bias=False)  # noqa: E731
    model = torch.nn.ModuleDict({"experts": torch.nn.ModuleList([one(), one()]), "mlp": one()})
    wanted = {name: True for name, _ in model.named_parameters()}
    held = {id(p) for p in model.parameters()}
    still = dict.fromkeys(wanted, (True, False))
    reached = {**still, "experts.1.weight": (True, True)}
    assert _faults(model, wanted, [still, reached], held) == ["without a gradient in 2 steps: mlp.weight"]
    assert _faults(model, wanted, [still, still], held) == [
        "without a gradient in 2 steps: experts.0.weight, experts.1.weight, mlp.weight"
    ]


@pytest.mark.parametrize(
    ("zero", "trained", "wanted"),
    [
        ("mlp.experts.gate_up_proj", ["mlp.gate"], False),  # all experts in one tensor: any token reaches it
        ("mlp.shared_expert.up_proj.weight", ["mlp.gate"], False),
        ("1.mlp.experts.3.w1.weight", ["1.mlp.experts.2.w1.weight"], True),
        ("1.mlp.experts.3.w1.weight", ["2.mlp.experts.2.w1.weight"], False),
        ("embed.trainable_tokens_delta", [], True),
    ],
)
def test_what_a_few_tokens_need_not_reach(zero: str, trained: list[str], wanted: bool) -> None:
    assert excused({zero}, [zero, *trained]) == ({zero} if wanted else set())
