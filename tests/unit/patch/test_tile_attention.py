"""The patch that marks attention layers for `trainer/tiles.py`: which models it takes, and that its marks are seen."""

from __future__ import annotations

import pytest
import torch
from small_runs import model_of

from dumbo.errors import UserError
from dumbo.patch.lora import LoRA
from dumbo.patch.tile_attention import TileAttention
from dumbo.verify.took import Looks


def test_attention_layers_are_marked_and_the_proof_sees_it() -> None:
    model = model_of(hidden_size=64)
    looks = Looks()
    looks.loaded(model)
    assert TileAttention().evidence(model).startswith("0 attention layers")
    patched = TileAttention().apply(model)
    looks.patched("tile_attention", TileAttention(), patched)
    assert looks.untaken == []
    assert TileAttention().evidence(patched) == "2 attention layers, for packs in bf16 or fp16"
    looks.patched("again", TileAttention(), TileAttention().apply(patched))
    assert looks.untaken == ["again"], "what changes nothing is found"


def test_adapters_around_it_change_nothing() -> None:
    model = LoRA(rank=2).apply(TileAttention().apply(model_of(hidden_size=64)))
    assert TileAttention().evidence(model).startswith("2 attention layers")


def test_heads_of_another_width_are_refused() -> None:
    with pytest.raises(UserError, match=r"has heads 20 wide; its kernels are made for 16, 32, 64, 128[\s\S]*Leave"):
        TileAttention().check(model_of(hidden_size=80))


def test_attention_dropout_is_refused() -> None:
    with pytest.raises(UserError, match="has attention dropout"):
        TileAttention().check(model_of(hidden_size=64, attention_dropout=0.1))


def test_heads_of_no_known_width_are_refused() -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    with pytest.raises(UserError, match="GPTNeoXForCausalLM has heads of a width that it does not name"):
        TileAttention().check(GPTNeoXForCausalLM(config))


def test_a_model_without_such_layers_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(UserError, match="MambaForCausalLM has an attention of its own"):
        TileAttention().check(MambaForCausalLM(config))


def test_a_machine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert TileAttention().unavailable() == "no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert TileAttention().unavailable() == "Tesla T4 has no bf16 matrix products"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("dumbo.patch.compile.shutil.which", lambda name: None)
    assert TileAttention().unavailable() == "no C compiler, which triton needs"
