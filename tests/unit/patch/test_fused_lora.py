"""Product and update added in place give peft's numbers: output, gradients, saved adapters, merged weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import model_of

from dumbo.errors import UserError
from dumbo.patch.fused_lora import FusedLoRA
from dumbo.patch.gradient_checkpointing import GradientCheckpointing
from dumbo.patch.lora import LoRA
from dumbo.trainer.low_rank import low_rank_linear


def numbers(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.train()
    out = model(input_ids=ids, labels=ids, use_cache=False)
    out.loss.backward()
    return out.logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def with_biases(wanted: bool) -> Any:
    """Queries, keys, values and outputs with biases that are not zero, MLPs without."""
    model = model_of(attention_bias=wanted)
    torch.manual_seed(0)
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    assert bool(biases) == wanted
    for bias in biases:
        bias.data.normal_()
    return model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_output_and_every_gradient_are_those_of_peft(bias: bool, checkpointed: bool) -> None:
    plain = LoRA(rank=4, init="random").apply(with_biases(bias))
    fused = FusedLoRA().apply(copy.deepcopy(plain))
    if checkpointed:
        plain, fused = GradientCheckpointing().apply(plain), GradientCheckpointing().apply(fused)
    ids = torch.randint(0, 512, (2, 24), generator=torch.Generator().manual_seed(0))
    wanted, gradients = numbers(plain, ids)
    found, theirs = numbers(fused, ids)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert theirs.keys() == gradients.keys()
    assert len(gradients) == 28
    for name, gradient in gradients.items():
        assert (theirs[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, down, up = drawn(2, 3, 5), drawn(2, 5), drawn(4, 2)
    weight, bias = drawn(4, 5), drawn(4)
    for tensor in (x, down, up):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: low_rank_linear(t[0], weight, bias, t[1], t[2], 1.5), (x, down, up))


def test_the_update_is_written_first() -> None:
    """In bf16 what the first one writes is rounded, then the sum: output and gradient of the input show which was first."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((64, 32), (48, 32), (4, 32), (48, 4), (64, 48))
    x, weight, down, up, to_out = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    x.requires_grad_()
    out = low_rank_linear(x, weight, None, down, up, 1.0)
    (to_x,) = torch.autograd.grad(out, x, to_out)
    narrow, to_narrow = x.detach() @ down.t(), to_out @ up
    for found, wide, update in (
        (out.detach(), x.detach().double() @ weight.double().t(), narrow.double() @ up.double().t()),
        (to_x, to_out.double() @ weight.double(), to_narrow.double() @ down.double()),
    ):
        assert (found == (wide + update.bfloat16()).bfloat16()).double().mean() > 0.99
        assert (found == (wide.bfloat16() + update).bfloat16()).double().mean() < 0.95


def test_an_update_stays_beside_a_large_bias_in_bf16() -> None:
    """Biases of some hundred, as in Qwen2's keys, that the layer's product takes back: what is left is the update."""
    generator = torch.Generator().manual_seed(0)
    x, weight, down, up = (
        torch.randn(shape, generator=generator).bfloat16() for shape in ((64, 32), (48, 32), (4, 32), (48, 4))
    )
    x[:, 0], weight[:, 0] = 1.0, -256.0  # the bias is taken back to the last bit
    weight[:, 1:] *= 0.01
    out = low_rank_linear(x, weight, torch.full((48,), 256.0).bfloat16(), down, up, 0.01)
    narrow = (x @ down.t()) * 0.01
    update = narrow.double() @ up.double().t()
    wide = x[:, 1:].double() @ weight[:, 1:].double().t()
    assert (out.double() - (wide + update)).norm() < 0.01 * update.norm()


def test_what_shows_that_it_took_is_read_off_the_layers() -> None:
    model = LoRA(rank=4).apply(model_of())
    with pytest.raises(RuntimeError, match="no adapter"):
        FusedLoRA().evidence(model)
    assert FusedLoRA().evidence(FusedLoRA().apply(model)) == "14 layers add product and update in place"


def test_under_autocast_it_computes_in_bf16() -> None:
    plain = LoRA(rank=4, init="random").apply(model_of())
    model = FusedLoRA().apply(copy.deepcopy(plain))
    ids = torch.randint(0, 512, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(input_ids=ids, labels=ids, use_cache=False)
    found.loss.backward()
    exact = plain(input_ids=ids, labels=ids, use_cache=False)
    assert found.loss.item() == pytest.approx(exact.loss.item(), rel=1e-2)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_without_adapters_and_merged_it_is_peft_that_computes() -> None:
    fused = FusedLoRA().apply(LoRA(rank=4, init="random").apply(model_of())).eval()
    ids = torch.randint(0, 512, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with_adapter = fused(input_ids=ids).logits
        with fused.disable_adapter():
            without = fused(input_ids=ids).logits
        assert torch.allclose(without, model_of().eval()(input_ids=ids).logits, atol=1e-6)
        assert not torch.allclose(without, with_adapter, atol=1e-3)
        merged = fused.merge_and_unload()
        assert torch.allclose(merged(input_ids=ids).logits, with_adapter, atol=1e-3)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({}, "patch=[…,lora,fused_lora]"),
        ({"lora": LoRA(dropout=0.1)}, "dropout=0.1"),
        ({"lora": LoRA(use_dora=True)}, "use_dora=True"),
        ({"lora": LoRA(bias="all")}, "bias=all"),
    ],
)
def test_what_it_does_not_do_is_refused(others: dict[str, Any], said: str) -> None:
    assert said in "\n".join(FusedLoRA().conflicts_with(others))


def test_an_adapter_to_go_on_from_may_have_what_it_does_not_do(tmp_path: Path) -> None:
    """Its own config says so; performance=auto leaves it out then."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_dropout": 0.05, "use_dora": False, "bias": "none"}))
    said = list(FusedLoRA().conflicts_with({"lora": LoRA(path=str(tmp_path))}))
    assert len(said) == 1
    assert said[0].startswith(
        "patch.fused_lora does not do lora_dropout=0.05, which the adapter in patch.lora.path has"
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_dropout": 0.0, "bias": "none"}))
    assert list(FusedLoRA().conflicts_with({"lora": LoRA(path=str(tmp_path))})) == []


@pytest.mark.parametrize(
    ("stored", "said"),
    [({"lora_bias": True}, "lora_bias=True"), ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters=")],
)
def test_nor_does_it_do_what_only_a_stored_adapter_has(stored: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_dropout": 0.0, "lora_bias": False, **stored}))
    [fault] = FusedLoRA().conflicts_with({"lora": LoRA(path=str(tmp_path))})
    assert said in fault
    assert "leave fused_lora out" in fault.lower()


@pytest.mark.parametrize(
    ("targets", "idle"), [(["embed_tokens"], True), (["embed_tokens", "q_proj"], False), ("q|v", False)]
)
def test_an_adapter_on_no_linear_layer_has_nothing_for_it(targets: Any, idle: bool, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"target_modules": targets}))
    said = FusedLoRA().idle_beside(LoRA(path=str(tmp_path)), model_of())
    assert (said is not None) == idle
    assert said is None or "on no linear layer (embed_tokens)" in said


def test_asked_for_beside_an_adapter_without_such_layers_it_is_refused() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    with pytest.raises(UserError, match=r"no plain LoRA[\s\S]*Leave fused_lora out"):
        FusedLoRA().apply(get_peft_model(model_of(), config))


def test_a_layer_whose_bias_trains_stays_pefts() -> None:
    """Its gradient would be lost."""
    model = LoRA(rank=4, bias="all").apply(model_of(attention_bias=True))
    assert FusedLoRA().evidence(FusedLoRA().apply(model)).startswith("6 layers")
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_model_of_other_linear_layers_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=32))
    with pytest.raises(UserError, match=r"GPT2LMHeadModel has no torch\.nn\.Linear"):
        FusedLoRA().check(model)
    FusedLoRA().check(model_of())


def test_a_model_without_adapters_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no adapter"):
        FusedLoRA().apply(model_of())


@pytest.mark.parametrize("bias", [False, True])
def test_a_compiled_layer_takes_it_in_one_graph(bias: bool) -> None:
    from torch._dynamo.utils import counters

    from dumbo.patch.compile import Compile

    torch.compiler.reset()
    counters.clear()
    plain = LoRA(rank=4, init="random").apply(with_biases(bias))
    fused = Compile(backend="aot_eager").apply(FusedLoRA().apply(copy.deepcopy(plain)))
    ids = torch.randint(0, 512, (2, 24), generator=torch.Generator().manual_seed(0))
    wanted, gradients = numbers(plain, ids)
    found, theirs = numbers(fused, ids)
    assert not counters["graph_break"]
    assert torch.allclose(found, wanted, atol=1e-5)
    for name, gradient in gradients.items():
        key = name if name in theirs else name.replace("._orig_mod", "")
        assert (theirs[key] - gradient).norm() <= 1e-5 * gradient.norm(), name
    torch.compiler.reset()
