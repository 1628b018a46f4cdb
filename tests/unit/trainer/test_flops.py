"""Operations of a step against those that torch counts while it computes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import model_of
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    Exaone4Config,
    Gemma3TextConfig,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from dumbo.patch.lora import LoRA
from dumbo.trainer.flops import flops_of, squares

TOKENS = 48


def counted(model: Any) -> float:
    """Of a token, by torch, which does not halve attention for causality. Rotary angles do not count: older transformers multiply for
    them.
    """
    ids = torch.randint(0, 100, (1, TOKENS))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    angles = sum(
        sum(found.values()) for name, found in counter.get_flop_counts().items() if name.endswith("rotary_emb")
    )
    return (counter.get_total_flops() - angles) / TOKENS


def claimed(model: Any) -> float:
    found = flops_of(model)
    assert found is not None
    return found.of_token + 2 * sum(found.of_square.values()) * TOKENS


def dense(trains: Callable[[str], bool] = lambda name: True, tied: bool = False) -> Any:
    model = model_of(tie_word_embeddings=tied, num_hidden_layers=4, attn_implementation="eager").train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = trains(name)
    return model


@pytest.mark.parametrize(
    "trains",
    [
        lambda name: True,
        lambda name: name == "lm_head.weight",
        lambda name: name == "model.norm.weight",
        lambda name: name == "model.embed_tokens.weight",
    ],
    ids=["all", "head", "norm", "embeddings"],
)
def test_a_dense_model_by_what_trains(trains: Callable[[str], bool]) -> None:
    assert claimed(dense(trains)) == counted(dense(trains))


def test_tied_embeddings_work_as_the_head() -> None:
    assert claimed(dense(tied=True)) == counted(dense(tied=True))


def test_the_last_layer_alone() -> None:
    """To 2%: its query, key and value need no gradient of what they are given, which is known of the first of them only."""
    model = dense(lambda name: "layers.3." in name or "lm_head" in name)
    assert claimed(model) == pytest.approx(counted(model), rel=0.02)


def test_adapters_and_what_lies_below_them() -> None:
    """To 2%, as above, for the first layer; four of six a frozen weight."""
    model = LoRA(rank=4).apply(dense())
    assert claimed(model) == pytest.approx(counted(model), rel=0.02)


@pytest.mark.parametrize("copied", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]], ids="-".join)
@pytest.mark.parametrize("tied", [True, False])
def test_copies_that_train_in_the_place_of_others(tied: bool, copied: list[str]) -> None:
    model = LoRA(rank=4, target_modules=["q_proj"], modules_to_save=copied).apply(dense(tied=tied))
    assert claimed(model) == pytest.approx(counted(model), rel=0.03)


def test_layers_with_heads_of_their_own() -> None:
    """Whose config has no one number of them."""
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    config = Gemma4TextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        global_head_dim=32, vocab_size=128, vocab_size_per_layer_input=128, hidden_size_per_layer_input=8, num_kv_shared_layers=0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = Gemma4ForCausalLM(config).train()
    assert claimed(model) == pytest.approx(counted(model), rel=0.02)


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_that_train(tied: bool) -> None:
    """peft makes such an embedding's weight anew each time that it is asked for. For two rows of a tied head it has the gradient of
    all of them computed, which is not needed.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[1, 2], task_type="CAUSAL_LM")
    model = get_peft_model(dense(tied=tied), config)
    head = model.get_base_model().get_output_embeddings().weight.numel()
    assert claimed(model) == pytest.approx(counted(model) - 2 * head * tied, rel=0.01)


def test_layers_of_another_name() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=32, n_layer=4, n_head=2, vocab_size=128, n_positions=64)
    config._attn_implementation = "eager"
    model = GPT2LMHeadModel(config).train()
    assert claimed(model) == pytest.approx(counted(model), rel=1e-6)


def experts() -> Any:
    """A token is sent to 4 of 64 experts."""
    config: Any = Qwen3MoeConfig(
        hidden_size=32, moe_intermediate_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, num_experts=64, num_experts_per_tok=4, vocab_size=128, tie_word_embeddings=False,
    )  # fmt: skip
    config._attn_implementation, config._experts_implementation = "eager", "eager"
    return Qwen3MoeForCausalLM(config).train()


def test_layers_without_attention_have_no_mfu() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(hidden_size=32, state_size=4, num_hidden_layers=2, vocab_size=128)
    assert flops_of(MambaForCausalLM(config)) is None


@pytest.mark.parametrize("kind", ["linear", "mamba"])
def test_nor_have_those_whose_layers_are_of_two_kinds(kind: str) -> None:
    from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM

    shared: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 128,
    }  # fmt: skip
    with torch.device("meta"):
        if kind == "linear":
            model: Any = Qwen3NextForCausalLM(Qwen3NextConfig(**shared, head_dim=8, num_experts=0))
        else:
            config = GraniteMoeHybridConfig(
                **shared, layer_types=["mamba", "attention"] * 2, mamba_n_heads=4, mamba_d_head=16
            )
            model = GraniteMoeHybridForCausalLM(config)
    assert flops_of(model) is None


def test_latent_attention_has_keys_of_another_width_than_values() -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config: Any = DeepseekV3Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, vocab_size=128,
        kv_lora_rank=8, q_lora_rank=8, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12, first_k_dense_replace=2,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = DeepseekV3ForCausalLM(config).train()
    assert claimed(model) == pytest.approx(counted(model), rel=1e-6)


def test_a_window_bounds_what_attention_costs() -> None:
    """Twice the pairs of a token and those that it looks back to, counted one by one but for halves of the diagonal."""
    lengths = np.array([1, 7, 8, 9, 40])
    for window in (None, 8, 100):
        pairs = [sum(min(place + 1, window or place + 1) for place in range(length)) for length in lengths.tolist()]
        on_it = np.minimum(lengths, window or lengths)
        assert squares(lengths, window).tolist() == [
            2 * one - least for one, least in zip(pairs, on_it.tolist(), strict=True)
        ]


@pytest.mark.parametrize(("kind", "windowed"), [("Gemma3", 5), ("Exaone4", 4)])
def test_each_layers_own_window(kind: str, windowed: int) -> None:
    """Of six layers; Exaone 4 has the window's number in all of them."""
    config: Any = {"Gemma3": Gemma3TextConfig, "Exaone4": Exaone4Config}[kind](
        hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        vocab_size=128, sliding_window=8,
        layer_types=["sliding_attention"] * windowed + ["full_attention"] * (6 - windowed),
    )  # fmt: skip
    with torch.device("meta"):
        found = flops_of(AutoModelForCausalLM.from_config(config))
    assert found is not None
    assert {window: times / (6.0 * 32) for window, times in found.of_square.items()} == {
        8: windowed,
        None: 6 - windowed,
    }


def test_without_a_window_all_is_seen() -> None:
    assert flops_of(model_of()).of_square.keys() == {None}  # type: ignore[union-attr]


def test_experts_that_a_token_is_not_sent_to_cost_nothing() -> None:
    model = experts()
    assert claimed(model) == pytest.approx(counted(model), rel=1e-6)


def test_without_the_number_of_chosen_experts_there_is_no_mfu(monkeypatch: pytest.MonkeyPatch) -> None:
    def stacked() -> Any:
        config: Any = GraniteMoeConfig(
            hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            num_local_experts=16, num_experts_per_tok=2, vocab_size=128, tie_word_embeddings=False,
        )  # fmt: skip
        config._attn_implementation, config._experts_implementation = "eager", "eager"
        return GraniteMoeForCausalLM(config).train()

    assert claimed(stacked()) == pytest.approx(counted(stacked()), rel=1e-6)
    monkeypatch.setattr("dumbo.trainer.flops.EXPERTS", ("called_otherwise",))
    assert flops_of(experts()) is None
    assert flops_of(dense()) is not None
