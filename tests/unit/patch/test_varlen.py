"""The patch that asks for torch's variable-length attention: where it cannot be, which models it takes, whose kernel it is."""

from __future__ import annotations

import pytest
import torch
from small_runs import model_of

from dumbo.errors import UserError
from dumbo.patch.tile_attention import TileAttention
from dumbo.patch.varlen import Varlen
from dumbo.trainer import attention, flash
from dumbo.verify.took import Looks


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")


def test_a_machine_without_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Varlen().unavailable() == "no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert Varlen().unavailable() == "Tesla T4 has no flash attention in bf16"


def test_a_kernel_that_is_not_installed_is_named(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "why_not", lambda name: f"{name} is not usable" if name == "FA3" else None)
    assert Varlen(flash="FA3").unavailable() == "FA3 is not usable"
    assert Varlen(flash="FA4").unavailable() is None
    assert Varlen().unavailable() is None


def test_layers_are_marked_and_the_proof_sees_it() -> None:
    model, looks = model_of(hidden_size=64), Looks()
    looks.loaded(model)
    patched = Varlen().apply(model)
    looks.patched("varlen", Varlen(), patched)
    assert looks.untaken == []
    assert Varlen().evidence(patched) == "2 attention layers, for packs in bf16 or fp16, by torch's own flash attention"
    assert TileAttention().evidence(patched).startswith("0 ")
    assert attention.idle("varlen", patched, "tokens", attention.NAME, True) is None
    assert "fp32" in str(attention.idle("varlen", patched, "tokens", attention.NAME, False))
    assert "rows" in str(attention.idle("varlen", patched, "rows", attention.NAME, True))
    assert attention.idle("tiles", patched, "rows", attention.NAME, True) is None, "nothing is marked for it"


@pytest.mark.parametrize(("hidden", "said"), [(80, "has heads 20 wide"), (4 * 264, "has heads 264 wide")])
def test_heads_that_it_does_not_take(hidden: int, said: str) -> None:
    with pytest.raises(UserError, match=rf"{said}; its kernel takes multiples of 8 up to 256[\s\S]*Leave varlen out"):
        Varlen().check(model_of(hidden_size=hidden))


def test_heads_of_no_known_width_are_refused() -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    with pytest.raises(UserError, match="GPTNeoXForCausalLM has heads of a width that it does not name"):
        Varlen().check(GPTNeoXForCausalLM(config))
