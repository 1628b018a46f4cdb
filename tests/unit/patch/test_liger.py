"""Liger's kernels: left out visibly on a CPU, refused where it does not know the model, and, with the real library
applied (and put back: it replaces functions for the whole process), each switch where it should be."""

from __future__ import annotations

import json

import pytest
from lacking import needs
from models import ARCHITECTURES

import dumbo
from dumbo.errors import UserError
from dumbo.patch.liger import Liger
from dumbo.patch.lora import LoRA
from dumbo.patch.put_back import put_back

needs("liger_kernel", "pip install liger-kernel")
SHORT = [
    "dataset.limit=40", "trainer.max_steps=2", "trainer.warmup_steps=0", "trainer.num_answers=0", "trainer.num_samples=0", "trainer.save_every=null",
    "trainer.eval_at_start=false", "trainer.global_batch_size=2", "trainer.micro_batch_size=2", "verify.mode=off", "run_dir=run",
]  # fmt: skip


@pytest.fixture
def no_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def skeleton(kind: str):
    import torch
    from transformers import AutoModelForCausalLM

    config = ARCHITECTURES[kind]()
    config.vocab_size, config.pad_token_id = 97, None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_left_out_on_a_cpu_and_said_so(no_gpu, tmp_path, capsys):
    dumbo.run(["patch=[liger]", *SHORT])
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["patches"] == {"liger": "left out: no CUDA device"}
    assert facts["status"] == "finished"
    assert "left out: no CUDA device" in capsys.readouterr().out


def test_required_is_an_error(no_gpu):
    with pytest.raises(UserError, match=r"patch.liger is required and cannot run here: no CUDA device"):
        dumbo.run(["patch=[liger]", "patch.liger.required=true", *SHORT])


def test_unknown_architecture_is_an_error_on_a_cpu_too(no_gpu):
    with pytest.raises(UserError, match=r"Liger has no kernels for the architecture 'gpt_neo'[\s\S]*without liger"):
        Liger().check(skeleton("gpt_neo"))


@pytest.mark.parametrize("kind", ["llama", "smollm3", "qwen3", "gemma3", "mistral"])
def test_knows_the_architectures_of_the_model_choices(kind):
    Liger().check(skeleton(kind))
    assert Liger()._arguments(skeleton(kind))[1]["fused_linear_cross_entropy"] is True


def test_unknown_kernel_for_an_architecture(no_gpu, monkeypatch):
    from liger_kernel.transformers import monkey_patch

    def without_rope(rms_norm: bool = True, swiglu: bool = True, model=None) -> None: ...

    monkeypatch.setitem(monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN, "llama", without_rope)
    with pytest.raises(
        UserError, match=r"patch.liger.rope: Liger has no such kernel for 'llama' \(it has rms_norm, swiglu\)"
    ):
        Liger(fused_linear_cross_entropy=False).check(skeleton("llama"))
    Liger(rope=False, fused_linear_cross_entropy=False).check(skeleton("llama"))


def test_switches_that_exclude_each_other():
    with pytest.raises(UserError, match="exclude each other"):
        Liger(cross_entropy=True)
    with pytest.raises(UserError, match="all its kernels are switched off"):
        Liger(rope=False, rms_norm=False, swiglu=False, fused_linear_cross_entropy=False)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_every_switch_reaches_ligers_function(kind, monkeypatch):
    from liger_kernel.transformers import monkey_patch

    model = skeleton(kind)
    mlp = "geglu" if kind == "gemma3" else "swiglu"
    real = monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN[model.config.model_type]
    names = ("rope", "rms_norm", "swiglu", "cross_entropy", "fused_linear_cross_entropy")
    for chosen in names:
        patch = Liger(**{name: name == chosen for name in names})
        function, switches = patch._arguments(model)
        assert function is real
        on = {name for name, value in switches.items() if value}
        assert on == {mlp if chosen == "swiglu" else chosen}


def applied(kind: str, **options: bool) -> dict[str, object]:
    """The real library on a real model; what it replaced for the whole process is put back."""
    from transformers import AutoModelForCausalLM

    config = ARCHITECTURES[kind]()
    config.vocab_size, config.pad_token_id = 97, None
    model = AutoModelForCausalLM.from_config(config)
    patch = Liger(**options)
    said: dict[str, object] = {}
    with pytest.raises(RuntimeError) as before:
        patch.evidence(model)
    try:
        model = patch.apply(model)
        norms = [module for name, module in model.named_modules() if name.endswith("layernorm")]
        said |= {"before": str(before.value), "after": patch.evidence(model)}
        said["norms"] = sorted({getattr(norm.forward, "__func__", norm.forward).__module__ for norm in norms})
        said["lora"] = patch.evidence(LoRA(rank=2).apply(model))
    finally:
        put_back()
    return said


def test_real_kernels_take_on_llama():
    said = applied("llama")
    assert "did not take on LlamaForCausalLM" in said["before"]
    assert said["after"] == "kernels in 5 norms, 2 MLPs, rope, fused loss"
    assert said["norms"] == ["liger_kernel.transformers.rms_norm"]
    assert said["lora"] == said["after"], "adapters on top hide nothing"


def test_only_the_kernel_asked_for():
    said = applied(
        "llama", rope=False, swiglu=False, rms_norm=False, fused_linear_cross_entropy=False, cross_entropy=True
    )
    assert "cross_entropy did not take" in said["before"]
    assert said["after"] == "kernels in cross entropy"
    assert not [module for module in said["norms"] if module.startswith("liger")]


@pytest.mark.parametrize("kind", ["smollm3", "qwen3", "gemma3", "mistral"])
def test_real_kernels_take_on_the_others(kind):
    said = applied(kind)
    assert "did not take" in said["before"]
    assert "norms" in said["after"]
    assert "2 MLPs, rope, fused loss" in said["after"]


def test_evidence_raises_when_liger_did_nothing(monkeypatch):
    from liger_kernel.transformers import monkey_patch

    def nothing(
        rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=True, model=None
    ): ...

    monkeypatch.setitem(monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN, "llama", nothing)
    with pytest.raises(RuntimeError, match=r"fused_linear_cross_entropy, rms_norm, rope, swiglu did not take"):
        Liger().apply(skeleton("llama"))
