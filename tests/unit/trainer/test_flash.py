"""torch's switch between flash attentions: the real one, with a package of FlashAttention 4's shape where none is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from dumbo.errors import UserError
from dumbo.patch.order import forget_earlier
from dumbo.patch.varlen import Varlen
from dumbo.trainer import flash

pytestmark = pytest.mark.skipif(
    not hasattr(torch.nn.attention, "activate_flash_attention_impl"), reason="a torch without the switch"
)


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`flash_attn.cute.interface`, with the names that torch looks for; its kernels are never called here."""
    module: Any = ModuleType("flash_attn.cute.interface")  # it alone: transformers looks for its parent
    module._flash_attn_fwd = module._flash_attn_bwd = lambda *arguments, **options: None
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield
    flash.switch_back()


def test_there_and_back(packaged: None) -> None:
    assert flash.current() == "torch's own"
    flash.switch_back()
    flash.switch("FA4")
    assert flash.current() == "FA4"
    flash.switch_back()
    assert flash.current() == "torch's own"


def test_the_patch_switches_and_the_next_run_starts_without(packaged: None) -> None:
    from small_runs import model_of

    model = Varlen(flash="FA4").apply(model_of(hidden_size=64))
    assert Varlen().evidence(model) == "2 attention layers, for packs in bf16 or fp16, by FA4 flash attention"
    Varlen(flash="FA4").apply(model_of(hidden_size=64))  # as verify does, in the same process
    forget_earlier()
    assert Varlen().evidence(model).endswith("by torch's own flash attention")
    Varlen(flash="FA4").apply(model_of(hidden_size=64))
    Varlen().apply(model)
    assert flash.current() == "torch's own", "what is not asked for does not stay"
    forget_earlier()


def test_a_skeleton_switches_nothing(packaged: None) -> None:
    """`plan` rehearses patches on one."""
    from small_runs import model_of

    with torch.device("meta"):
        skeleton = model_of(hidden_size=64)
    Varlen(flash="FA4").apply(skeleton)
    assert flash.current() == "torch's own"


def test_what_is_not_there_is_said() -> None:
    assert str(flash.why_not("FA5")) == "this torch cannot switch to FA5"
    assert str(flash.why_not("FA3")).startswith(
        "FA3 is not usable: ModuleNotFoundError: No module named 'flash_attn_interface'"
    )


def test_a_broken_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built for another torch: it raises while it is imported."""

    def broken(name: str) -> Any:
        raise ImportError("undefined symbol: _ZN3c10\nand more")

    monkeypatch.setattr(flash.importlib, "import_module", broken)
    assert flash.why_not("FA4") == "FA4 is not usable: ImportError: undefined symbol: _ZN3c10"


def test_one_that_does_not_fit_this_torch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unfit(name: str) -> None:
        raise RuntimeError("does not expose FA4 kernels")

    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", unfit)
    with pytest.raises(UserError, match=r"patch.varlen.flash=FA4: torch cannot switch to it[\s\S]*flash=torch"):
        flash.switch("FA4")
