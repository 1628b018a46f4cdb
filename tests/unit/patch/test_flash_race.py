"""An installed FlashAttention beside tiles: which is taken, what is said, and that the run keeps it."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from attending import alone
from small_runs import model_of

from dumbo.errors import UserError
from dumbo.outputs.console import Console
from dumbo.outputs.run_dir import RunDir
from dumbo.patch import auto, flash_race
from dumbo.patch.flash_race import Raced, raced
from dumbo.trainer import flash

LENGTHS = np.array([300, 5000, 40, 900])


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """FA3 and FA4, which take so many milliseconds a layer; `used` says what was in use when ours and theirs were measured."""
    state: dict[str, Any] = {"FA3": 2.0, "FA4": 1.5, "tiles": 1.8, "wrong": None, "used": [], "now": "torch's own"}
    out = torch.ones(4)

    def switch(name: str) -> None:
        if state[name] is None:
            raise UserError(f"torch cannot switch to {name}")
        state["now"] = name

    def measured(attend: Any, heads: Any, bounds: Any) -> Any:
        state["used"].append((attend.__name__, state["now"], heads.window))
        name = "tiles" if attend is flash_race._tiles else state["now"]
        return state[name], [out * (1.1 if name == state["wrong"] else 1.0)]

    monkeypatch.setattr(flash, "why_not", lambda name: None)
    monkeypatch.setattr(flash, "switch", switch)
    monkeypatch.setattr(flash, "switch_back", lambda: state.update(now="torch's own"))
    monkeypatch.setattr(flash_race, "_measured", measured)
    return state


def test_none_is_installed_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "why_not", lambda name: f"{name} is not usable")
    assert raced(model_of(), LENGTHS) == []


def test_each_is_measured_with_its_own_kernels(installed: dict[str, Any]) -> None:
    found = raced(model_of(num_hidden_layers=3), LENGTHS)
    assert [(one.name, one.ms, one.ours_ms, one.faster) for one in found] == [
        ("FA3", 6.0, pytest.approx(5.4), False),
        ("FA4", 4.5, pytest.approx(5.4), True),
    ]
    assert found[1].said == "FA4 takes 4.50 ms for 3 layers on 16,384 tokens, tiles 5.40"
    assert [used[:2] for used in installed["used"]] == [
        ("_tiles", "torch's own"),
        ("_varlen", "FA3"),
        ("_varlen", "FA4"),
    ]
    assert installed["now"] == "torch's own"


def test_layers_with_a_window_count_for_themselves(installed: dict[str, Any]) -> None:
    model = model_of(num_hidden_layers=3)
    model.model.layers[0].self_attn.sliding_window = 64
    found = raced(model, LENGTHS)
    assert found[0].ms == pytest.approx(6.0)
    assert {used[2] for used in installed["used"]} == {None, 64}


def test_one_that_is_wrong_or_fails_is_not_taken(installed: dict[str, Any]) -> None:
    installed.update(FA3=None, wrong="FA4")
    fa3, fa4 = raced(model_of(), LENGTHS)
    assert not fa3.faster
    assert not fa4.faster
    assert fa3.said == "FA3 failed: UserError: torch cannot switch to FA3"
    assert fa4.said == "FA4's numbers are 0.1 from those of tiles"
    assert installed["now"] == "torch's own"


def test_hardly_faster_is_not_faster() -> None:
    assert not Raced("FA3", 0.98, 1.0, "").faster
    assert Raced("FA3", 0.96, 1.0, "").faster


@pytest.mark.parametrize("lengths", [LENGTHS, np.array([3]), np.array([50_000]), np.ones(100_000, np.int64)])
def test_the_pack_is_of_the_datas_documents(lengths: Any) -> None:
    bounds = flash_race._bounds(lengths)
    found = np.diff(bounds)
    assert (bounds[0], bounds[-1]) == (0, flash_race.TOKENS)
    assert found.min() > 0
    assert set(found[:-1]) <= set(lengths.tolist())


def test_what_is_compared_is_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is of a GPU; output and gradients are those of each document alone."""

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None: ...

        def elapsed_time(self, other: Any) -> float:
            return 1.0

    device = torch.device
    monkeypatch.setattr(torch, "device", lambda kind, index=0: device("cpu"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)

    def written(q: Any, k: Any, v: Any, bounds: Any, longest: int, window: int | None) -> torch.Tensor:
        assert longest == 30
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (q, k, v))
        return alone(q, k, v, bounds[:-1].tolist()).to(q.dtype)[None]

    heads = flash_race._Heads(4, 2, 16, None)
    ms, found = flash_race._measured(written, heads, [0, 30, 50])
    again = flash_race._measured(written, heads, [0, 30, 50])[1]
    assert ms == 1.0
    assert [tuple(one.shape) for one in found] == [(1, 50, 4, 16), (1, 4, 50, 16), (1, 2, 50, 16), (1, 2, 50, 16)]
    assert flash_race._apart(found, again) == 0, "both kernels get the same numbers"
    assert flash_race._apart([one * 1.1 for one in found], found) == pytest.approx(0.1, rel=0.1)


def test_what_was_found_is_kept_for_a_resumed_run(
    installed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    run = RunDir(tmp_path, Console(said), 0.0)
    data: Any = SimpleNamespace(train=SimpleNamespace(lengths=LENGTHS))
    best = auto._faster_flash(model_of(), data, run)
    assert best is not None
    assert best.name == "FA4"
    assert run.facts["patches"]["varlen"].startswith("left out: FA3 takes 4.00 ms")
    monkeypatch.setattr(flash_race, "raced", lambda *given: pytest.fail("measured again"))
    assert auto._faster_flash(model_of(), data, run) == best
