from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from dumbo import cli
from dumbo.errors import UserError
from dumbo.interfaces import Stage
from dumbo.patch import order
from dumbo.patch.freeze import Freeze
from dumbo.patch.gradient_checkpointing import GradientCheckpointing
from dumbo.patch.liger import Liger
from dumbo.patch.lora import LoRA


def test_order_comes_from_the_stage_not_from_typing():
    patches = {"lora": LoRA(), "liger": Liger(), "gradient_checkpointing": GradientCheckpointing()}
    for typed in itertools.permutations(patches):
        assert list(order.in_order({name: patches[name] for name in typed})) == [
            "liger",
            "lora",
            "gradient_checkpointing",
        ]


def test_adapters_freeze_the_base():
    assert order.freezes_base({"lora": LoRA()})
    assert not order.freezes_base({"freeze": Freeze(freeze=["x"]), "liger": Liger()})


@dataclass(frozen=True)
class Asks:
    value: Any
    stage: ClassVar[Stage] = Stage.LOAD

    def load_kwargs(self):
        return {"attn_implementation": self.value}

    def apply(self, model):
        return model


def test_load_kwargs_are_merged_or_refused():
    assert order.load_kwargs({"a": Asks("sdpa"), "b": Asks("sdpa"), "lora": LoRA()}) == {"attn_implementation": "sdpa"}
    with pytest.raises(UserError, match=r"patch.a and patch.b ask for different attn_implementation: sdpa and eager"):
        order.load_kwargs({"a": Asks("sdpa"), "b": Asks("eager")})


def test_a_patch_needs_no_more_than_stage_and_apply():
    patch = Asks("sdpa")
    assert order.why_unavailable("a", patch) is None
    assert order.evidence(patch, None) == "applied"


def test_conflict_is_named_before_anything_loads(capsys):
    assert cli.main(["patch=[lora,freeze]", "patch.freeze.freeze=[embed_tokens]"]) == 2
    err = capsys.readouterr().err
    assert "lora" in err
    assert "freeze" in err
    assert "Traceback" not in err


def test_unknown_module_ends_before_weights_are_loaded(monkeypatch, capsys):
    from dumbo.model.tiny import Tiny

    monkeypatch.setattr(Tiny, "load_model", lambda *_, **__: pytest.fail("weights loaded"))
    words = ["patch=[lora]", "patch.lora.target_modules=[q_prok]", "dataset.limit=20", "run_dir=run"]
    assert cli.main(words) == 2
    assert "Did you mean 'q_proj'" in capsys.readouterr().err
