"""The patch that asks for torch's variable-length attention: where it cannot be, which models it takes, whose kernel it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_runs import model_of

from dumbo.errors import UserError
from dumbo.patch.order import forget_earlier
from dumbo.patch.tile_attention import TileAttention
from dumbo.patch.varlen import Varlen
from dumbo.trainer import attention, flash
from dumbo.trainer.flash import Trial
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
    monkeypatch.setattr(flash, "installed", lambda: ["FA4"])
    assert Varlen(flash="FA3").unavailable() == "FA3 is not installed (flash_attn_interface)"
    assert Varlen(flash="FA4").unavailable() is None
    assert Varlen().unavailable() is None


def test_layers_are_marked_and_the_proof_sees_it() -> None:
    model, looks = model_of(hidden_size=64), Looks()
    looks.loaded(model)
    patched = Varlen(flash="torch").apply(model)
    looks.patched("varlen", Varlen(), patched)
    assert looks.untaken == []
    assert Varlen().evidence(patched) == "2 attention layers, for packs in bf16 or fp16: torch's own flash attention"
    assert TileAttention().evidence(patched).startswith("0 ")
    assert attention.idle("varlen", patched, "tokens", attention.NAME, True) is None
    assert "fp32" in str(attention.idle("varlen", patched, "tokens", attention.NAME, False))
    assert "rows" in str(attention.idle("varlen", patched, "rows", attention.NAME, True))
    assert attention.idle("tiles", patched, "rows", attention.NAME, True) is None, "nothing is marked for it"


@pytest.mark.parametrize(("hidden", "said"), [(80, "has heads 20 wide"), (4 * 264, "has heads 264 wide")])
def test_heads_that_it_does_not_take(hidden: int, said: str) -> None:
    with pytest.raises(UserError, match=rf"{said}; its kernel takes multiples of 8 up to 256[\s\S]*Leave varlen out"):
        Varlen().check(model_of(hidden_size=hidden))


@pytest.fixture
def switched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What torch is switched to, in turn; FA3 and FA4 are there, and trials are made up by the test."""
    log: list[str] = []
    monkeypatch.setattr(flash, "installed", lambda: ["FA3", "FA4"])
    monkeypatch.setattr(flash, "switch", log.append)
    monkeypatch.setattr(flash, "switch_back", lambda: log.append("torch"))
    return log


def tried(monkeypatch: pytest.MonkeyPatch, **trials: Trial) -> None:
    monkeypatch.setattr(flash, "tried", lambda names, *heads: {"torch": Trial(1.0), **{n: trials[n] for n in names}})


def test_the_fastest_is_taken_and_a_later_run_starts_without(
    switched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried(monkeypatch, FA3=Trial(0.5), FA4=Trial(fault="it fails here (TypeError: two values)"))
    model = Varlen().apply(model_of(hidden_size=64))
    assert switched == ["FA3"]
    assert (
        Varlen()
        .evidence(model)
        .endswith(": FA3, FA3 takes 50% of the time of torch's own, FA4: it fails here (TypeError: two values)")
    )
    forget_earlier()
    assert switched == ["FA3", "torch"]
    forget_earlier()
    assert switched == ["FA3", "torch"]


def test_torchs_own_stays_where_it_is_the_fastest(switched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tried(monkeypatch, FA3=Trial(1.5), FA4=Trial(fault="broken"))
    model = Varlen().apply(model_of(hidden_size=64))
    assert switched == []
    assert "torch's own flash attention, FA3 takes 150%" in Varlen().evidence(model)


def test_one_asked_for_by_name_is_an_error_where_it_fails(switched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tried(monkeypatch, FA3=Trial(1.5), FA4=Trial(fault="its numbers are 0.3 away from torch's own (0.02 allowed)"))
    with pytest.raises(UserError, match=r"patch.varlen.flash=FA4: its numbers are 0.3 away[\s\S]*flash=auto"):
        Varlen(flash="FA4").apply(model_of(hidden_size=64))
    Varlen(flash="FA3").apply(model_of(hidden_size=64))
    assert switched == ["FA3"], "slower, and asked for"
    forget_earlier()


def test_heads_are_those_of_the_model(switched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(flash, "tried", lambda names, *heads: seen.append(heads) or {"torch": Trial(1.0)})
    Varlen().apply(model_of(hidden_size=64))
    assert seen == [(4, 2, 16)]
