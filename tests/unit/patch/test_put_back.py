"""After a run with Liger the next one in the same process trains as in a fresh one: the real library's replacements are
put back. Its kernels cannot run on a CPU: they are applied, and not called."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from lacking import needs
from models import ARCHITECTURES

import dumbo
from dumbo.patch import order
from dumbo.patch.liger import Liger, _is_ligers

needs("liger_kernel", "pip install liger-kernel")
SHORT = ["dataset.limit=40", "trainer.max_steps=2", "trainer.warmup_steps=0", "trainer.num_answers=0", "trainer.num_samples=0",
         "trainer.save_every=null", "trainer.global_batch_size=2", "trainer.micro_batch_size=2", "trainer.max_seq_len=128",
         "verify.mode=off"]  # fmt: skip

KINDS = ("llama", "gemma3", "qwen3", "mistral", "smollm3")


def model_of(kind: str) -> Any:
    from transformers import AutoModelForCausalLM

    config = ARCHITECTURES[kind]()
    config.vocab_size, config.pad_token_id = 97, None
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def everything(model: Any) -> dict[str, Any]:
    """What a new model of this kind is built from and runs through: the library's names, and the names of its classes."""
    from torch.nn import functional

    module = sys.modules[type(model).__module__]
    found = {f"module {name}": value for name, value in vars(module).items()}
    for cls in {type(part) for part in model.modules()}:
        found |= {f"{cls} {name}": value for name, value in vars(cls).items()} | {f"{cls} name": cls.__name__}
    return found | {"cross entropy": functional.cross_entropy}


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        *((kind, "fused_linear_cross_entropy") for kind in sorted(KINDS)),
        ("llama", "cross_entropy"),
        ("gemma3", "cross_entropy"),
    ],
)
def test_all_that_liger_replaced_is_put_back(kind: str, loss: str) -> None:
    model = model_of(kind)
    before = everything(model)
    patch = Liger(cross_entropy=loss == "cross_entropy", fused_linear_cross_entropy=loss != "cross_entropy")
    patch.apply(model)
    during = everything(model)
    replaced = {name for name, value in during.items() if value is not before.get(name)}
    assert any("apply_rotary_pos_emb" in name for name in replaced)
    assert any("RMSNorm" in name for name in replaced)
    assert ("cross entropy" in replaced) == (loss == "cross_entropy")
    order.forget_earlier()
    after = everything(model)
    assert after.keys() == before.keys()
    assert {name for name, value in after.items() if value is not before[name]} == set()


def test_another_choice_of_kernels_starts_from_none() -> None:
    from transformers.models.llama import modeling_llama

    first, second = model_of("llama"), model_of("llama")
    Liger().apply(first)
    assert _is_ligers(modeling_llama.apply_rotary_pos_emb)
    assert Liger(rope=False, rms_norm=False).evidence(Liger(rope=False, rms_norm=False).apply(second)) == (
        "kernels in 2 MLPs, fused loss"
    )
    assert not _is_ligers(modeling_llama.apply_rotary_pos_emb)
    order.forget_earlier()


def test_the_next_run_has_the_numbers_of_a_fresh_process(tmp_path: Any) -> None:
    def loss(name: str) -> float:
        return float(dumbo.run([*SHORT, f"run_dir={tmp_path / name}"])["train_loss"])

    wanted = loss("fresh")
    Liger().apply(model_of("llama"))  # the tiny model's kind
    assert loss("after") == wanted
