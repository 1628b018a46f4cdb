"""Isolation of packs in models with experts: what experts do by themselves is measured, a leak is far above it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from proving import prove_all
from small_runs import tiny_tokenizer
from torch import nn

from dumbo.errors import ProofFailed
from dumbo.trainer import attention
from dumbo.trainer.layout import choose_layout
from dumbo.verify.experts import allowed_by_experts, composition_noise, has_experts, root_mean_square
from dumbo.verify.pack_leak import probe_alone, probe_experts, probe_packing

V = 512
SHAPE = {
    "vocab_size": V, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1, "use_cache": False,
}  # fmt: skip


def moe(kind: str, seed: int = 0) -> Any:
    """A random Mixtral or Qwen3-MoE."""
    from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(seed)
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2))
    config = Qwen3MoeConfig(**SHAPE, head_dim=16, moe_intermediate_size=64, num_experts=16, num_experts_per_tok=4)
    return Qwen3MoeForCausalLM(config)


KINDS = ("mixtral", "qwen3_moe")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bf16", [False, True])
def test_packs_of_a_model_with_experts_are_isolated_within_their_noise(kind: str, bf16: bool) -> None:
    for seed in range(3):
        model = moe(kind, seed)
        assert has_experts(model)
        layout, said = choose_layout(model, True, "auto", bf16=bf16)
        assert layout == "tokens"
        assert "isolated attention, experts may make" in said


def test_a_product_for_each_token_makes_no_noise() -> None:
    """So it is the size of the products, and nothing else."""
    found = {}
    for how in ("grouped_mm", "batched_mm"):
        model = moe("qwen3_moe")
        model.set_experts_implementation(how)
        found[how] = probe_experts(model, V)
    assert found["batched_mm"] == 0.0
    assert 0 < found["grouped_mm"] < 1e-6


def weakly_leaking(share: float) -> Any:
    """Isolated, and beside it a little of what attention without boundaries gives."""
    right = attention.isolated_attention

    def leaks(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        own, weights = right(module, query, key, value, *args, **kwargs)
        groups = query.shape[1] // key.shape[1]
        every = nn.functional.scaled_dot_product_attention(
            query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), is_causal=True
        )
        return (1 - share) * own + share * every.transpose(1, 2), weights

    return leaks


@pytest.mark.parametrize(("share", "bf16", "times"), [(1.0, True, 30), (0.1, True, 3), (0.01, False, 1000)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_leak_is_far_above_it(
    kind: str, share: float, bf16: bool, times: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moe(kind)
    monkeypatch.setattr(attention, "isolated_attention", weakly_leaking(share))
    try:
        alone = probe_alone(model, V, bf16)
        noise = probe_experts(model, V, bf16)
        attention.register()
        model.set_attn_implementation(attention.NAME)
        dtype = torch.bfloat16 if bf16 else torch.float32
        allowed = allowed_by_experts(noise, dtype, root_mean_square(alone)).value
        assert probe_packing(model, "tokens", V, alone, bf16).spread > times * allowed
        with pytest.raises(ProofFailed, match="cannot keep packed documents apart"):
            choose_layout(model, True, attention.NAME, bf16=bf16)
    finally:
        monkeypatch.undo()
        attention.register()


def test_noise_is_the_largest_of_the_draws_over_what_is_kept() -> None:
    """By hand: logits that move with the sum of the other row; padding does not count."""
    kept = [torch.tensor([1, 2, 3]), torch.tensor([4])]
    sums: list[float] = []

    def logits_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        sums.append(float(batch["input_ids"][-1].sum()))
        logits = torch.full((3, 3, 2), sums[-1])
        logits[1, 1:] = 1e9 * torch.rand(())  # behind the end of the second row
        return logits

    found = composition_noise(logits_of, kept, 100)
    assert len(sums) == 4
    assert found == max(abs(each - sums[0]) for each in sums)


def test_one_rounding_is_allowed_where_no_noise_was_seen() -> None:
    silent = allowed_by_experts(0.0, torch.bfloat16, 2.0)
    assert silent.value == 2.0 * 2**-7
    assert "eps(bfloat16)" in silent.source
    assert allowed_by_experts(0.1, torch.bfloat16, 2.0).value == pytest.approx(0.3)


# ---- dumbo verify ---------------------------------------------------------------------------------------------------


def proven(kind: str, folder: Path) -> dict[str, Any]:
    moe(kind).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    words = ["model=pretrained", f"model.path={folder / 'model'}", "trainer.precision=bf16"]
    return {proof.name: proof for proof in prove_all(folder, words, ("packed",))["packed"]}


def test_the_proof_on_data_of_a_model_with_experts(tmp_path: Path) -> None:
    found = proven("qwen3_moe", tmp_path)
    assert [proof.passed for proof in found.values()] == [True, True]
    assert found["no leak"].source.startswith("experts share products: ")
    assert 0 < found["no leak"].tolerance < 0.01
    assert "root mean square" in found["no leak"].compared


@pytest.mark.full
def test_a_border_that_is_lost_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_planted_bugs import first_document_seen_by_all, pack_not_isolated

    first_document_seen_by_all(monkeypatch)
    found = proven("mixtral", tmp_path / "border")
    assert found["packed = unpacked"].passed is False
    monkeypatch.undo()
    pack_not_isolated(monkeypatch)
    found = proven("mixtral", tmp_path / "none")
    assert found["no leak"].passed is False
    assert found["no leak"].difference > 10 * found["no leak"].tolerance
