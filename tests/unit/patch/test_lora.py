from __future__ import annotations

import json

import pytest
import torch

from dumbo.errors import UserError
from dumbo.model.pretrained import resize_embeddings
from dumbo.patch.lora import LoRA


class Tokens:
    """A tokenizer to which tokens were added, as far as `resize_embeddings` looks at it."""

    def __init__(self, before: int, added: int) -> None:
        self.length, self.added_by_dumbo = before + added, list(range(before, before + added))

    def __len__(self) -> int:
        return self.length


def test_only_adapters_change(tiny, one_step):
    model = LoRA(rank=4).apply(tiny)
    assert one_step(model) == {name for name, _ in model.named_parameters() if "lora_B" in name}, "A waits for B"
    assert one_step(model, 2) == {name for name, _ in model.named_parameters() if ".lora_" in name}


def test_rank_alpha_and_targets(tiny):
    model = LoRA(rank=3, alpha=12, target_modules=["q_proj", "down_proj"]).apply(tiny)
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(adapters) == 2 * 2 * 2
    assert all("q_proj" in name or "down_proj" in name for name in adapters)
    assert {min(p.shape) for p in adapters.values()} == {3}
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 12 / 3
    assert "4,8" not in LoRA.evidence(LoRA(), model)


def test_all_linear_leaves_the_head_out(untied):
    model = LoRA().apply(untied)
    wrapped = {name.split(".lora_A")[0].split(".")[-1] for name, _ in model.named_parameters() if "lora_A" in name}
    assert wrapped == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_one_target_as_text(tiny):
    model = LoRA(target_modules="v_proj").apply(tiny)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 2


def test_rslora_scales_by_the_root(tiny):
    model = LoRA(rank=16, alpha=32, use_rslora=True).apply(tiny)
    assert model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == 32 / 4


def test_the_update_is_what_the_paper_says(untied):
    """W x + alpha / rank B A x, computed here."""
    model = LoRA(rank=4, alpha=8, init="random", target_modules=["up_proj"]).apply(untied).eval()
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    x = torch.randn(3, 32)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = x @ layer.base_layer.weight.T + 2.0 * (x @ a.T) @ b.T
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal", "pissa", "olora"])
def test_inits_that_start_from_the_same_model(init, untied, logits_of):
    before = logits_of(untied)
    model = LoRA(rank=4, alpha=4, init=init).apply(untied)
    torch.testing.assert_close(logits_of(model), before, atol=2e-4, rtol=1e-3)


def test_init_random_starts_from_another(untied, logits_of):
    before = logits_of(untied)
    assert not torch.allclose(logits_of(LoRA(init="random").apply(untied)), before, atol=1e-2)


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"use_rslora": True}, {"bias": "lora_only"}, {"init": "pissa"}]
)
def test_merged_is_unmerged(options, untied, one_step, logits_of):
    model = LoRA(rank=4, **options).apply(untied)
    one_step(model, 3)
    trained = logits_of(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits_of(merged), trained, atol=1e-3, rtol=1e-3)
    assert not any("lora_" in name for name, _ in merged.named_parameters())


@pytest.mark.parametrize(("bias", "trained"), [("none", 0), ("lora_only", 4), ("all", 4)])
def test_bias(bias, trained, untied, one_step):
    model = LoRA(bias=bias, target_modules=["q_proj", "v_proj"]).apply(untied)
    changed = {name for name in one_step(model) if name.endswith("bias")}
    assert len(changed) == (
        trained if bias != "all" else len([n for n, _ in untied.named_parameters() if n.endswith("bias")])
    )
    assert bool(trained) == bool(changed)


def test_dora_trains_a_magnitude(untied, one_step):
    model = LoRA(use_dora=True).apply(untied)
    assert any("lora_magnitude_vector" in name for name in one_step(model))


def test_dropout_only_in_training(untied, batch):
    model = LoRA(dropout=0.5, init="random").apply(untied)
    ids = batch["input_ids"]
    with torch.no_grad():
        model.train()
        assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
        model.eval()
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_modules_to_save_train_whole_and_are_saved(untied, one_step, tmp_path):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    model = LoRA(modules_to_save=["lm_head"]).apply(untied)
    assert any("lm_head" in name for name in one_step(model))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    base = LlamaForCausalLM(untied.config)
    again = PeftModel.from_pretrained(base, tmp_path / "adapter")
    name = "base_model.model.lm_head.modules_to_save.default.weight"
    assert torch.equal(dict(again.named_parameters())[name], dict(model.named_parameters())[name])


@pytest.mark.parametrize("tie", [True, False])
def test_added_tokens_stay_trainable(tie, tiny, untied, one_step, batch, logits_of, tmp_path):
    """Their rows train, the others stay; tied rows are the same at both ends; saved, loaded, merged alike."""
    from peft import PeftModel

    base = tiny if tie else untied
    old = base.get_input_embeddings().weight.shape[0]
    resize_embeddings(base, Tokens(old, 2))
    start = {name: p.detach().clone() for name, p in base.named_parameters()}
    model = LoRA(rank=4).apply(base)
    batch["input_ids"][:, 3] = old
    batch["input_ids"][:, 5] = old + 1
    changed = one_step(model, 2)
    assert any("trainable_tokens" in name for name in changed), changed
    trained = logits_of(model)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)

    merged = model.merge_and_unload()
    torch.testing.assert_close(logits_of(merged), trained, atol=1e-4, rtol=1e-4)
    embedding = merged.get_input_embeddings().weight
    assert not torch.equal(embedding[old:], start["model.embed_tokens.weight"][old:])
    torch.testing.assert_close(embedding[:old], start["model.embed_tokens.weight"][:old], rtol=0, atol=0)
    head = merged.get_output_embeddings().weight
    if tie:
        torch.testing.assert_close(head, embedding, rtol=0, atol=0)
    else:
        assert not torch.equal(head[old:], start["lm_head.weight"][old:])

    fresh = type(merged)(merged.config)
    fresh.load_state_dict({**start, **({"lm_head.weight": start["model.embed_tokens.weight"]} if tie else {})})
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    torch.testing.assert_close(logits_of(again), trained, atol=1e-5, rtol=1e-5)


def test_added_tokens_with_one_end_saved_whole(untied):
    """The embedding is trained whole; the head's new rows train all the same."""
    resize_embeddings(untied, Tokens(97, 1))
    model = LoRA(modules_to_save=["embed_tokens"]).apply(untied)
    trains = {name for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name}
    assert any("embed_tokens.modules_to_save" in name for name in trains)
    assert any("lm_head" in name and "trainable_tokens" in name for name in trains)


def test_goes_on_from_an_adapter(untied, one_step, logits_of, tmp_path):
    import copy

    base = copy.deepcopy(untied)
    model = LoRA(rank=5, target_modules=["q_proj"]).apply(untied)
    one_step(model, 2)
    model.save_pretrained(tmp_path / "adapter")
    patch = LoRA(path=str(tmp_path / "adapter"))
    assert list(patch.problems()) == []
    again = patch.apply(base)
    torch.testing.assert_close(logits_of(again), logits_of(model))
    assert patch.evidence(again).startswith(f"{2 * 5 * (32 + 32):,} trainable")
    assert one_step(again) <= {name for name, _ in again.named_parameters() if ".lora_" in name}


def test_goes_on_from_an_adapter_on_the_embeddings(untied, one_step, tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    get_peft_model(untied, config).save_pretrained(tmp_path / "adapter")
    base = type(untied)(untied.config)
    model = LoRA(path=str(tmp_path / "adapter")).apply(base)
    assert all("embed_tokens" in name for name in one_step(model))


def test_what_peft_cannot_adapt_is_said_in_its_words():
    """Experts of a layer in one tensor."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        hidden_size=32, moe_intermediate_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, num_experts=4, num_experts_per_tok=2, vocab_size=128,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"Qwen3MoeForCausalLM cannot be adapted so: .*dropout"):
        LoRA(dropout=0.1).apply(Qwen3MoeForCausalLM(config))


def test_an_adapter_of_another_model_is_refused(untied, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "target_modules": ["c_attn"], "r": 4}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"adapter in .* is for another model: no linear layer is called 'c_attn'"):
        LoRA(path=str(adapter)).check(untied)
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(UserError, match="holds a IA3 adapter, no LoRA"):
        LoRA(path=str(adapter)).check(untied)
    assert "holds no adapter" in next(iter(LoRA(path=str(tmp_path)).problems()))
    (adapter / "adapter_model.bin").write_bytes(b"")
    assert "pickled weights are not read" in next(iter(LoRA(path=str(adapter)).problems()))


def test_unknown_module_is_named(tiny):
    with pytest.raises(UserError, match=r"no linear layer is called 'q_prok'.*Did you mean 'q_proj'"):
        LoRA(target_modules=["q_prok"]).check(tiny)
    with pytest.raises(UserError, match=r"modules_to_save: no module is called 'lm_heat'.*Did you mean 'lm_head'"):
        LoRA(modules_to_save=["lm_heat"]).check(tiny)
    with pytest.raises(UserError, match="no linear layer is called 'embed_tokens'"):
        LoRA(target_modules=["embed_tokens"]).check(tiny)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"alpha": 0}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        LoRA(**wrong)


def test_evidence_wants_adapters(tiny):
    with pytest.raises(AssertionError):
        LoRA().evidence(tiny)
