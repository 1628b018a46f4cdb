"""Trying the flash attentions that torch can switch to: what is right and quickest is taken, what fails is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dumbo.trainer import flash
from dumbo.trainer.flash import Trial, fastest, told, trial_of

WANTED = (torch.ones(3), torch.ones(2))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of switches."""
    found: list[str] = []
    monkeypatch.setattr(flash, "switch", found.append)
    monkeypatch.setattr(flash, "switch_back", lambda: found.append("back"))
    return found


def test_one_that_computes_the_same_is_timed(log: list[str]) -> None:
    assert trial_of("FA3", lambda: ((1.01 * WANTED[0], WANTED[1]), 0.5), WANTED) == Trial(0.5)
    assert log == ["FA3", "back"]


@pytest.mark.parametrize(
    ("wrong", "said"), [(1.1, "its numbers are 0.1 away"), (float("nan"), "its numbers are nan away")]
)
def test_one_with_other_numbers_is_not_taken(wrong: float, said: str, log: list[str]) -> None:
    found = trial_of("FA3", lambda: ((WANTED[0], wrong * WANTED[1]), 0.5), WANTED)
    assert found.seconds is None
    assert str(found.fault).startswith(said)
    assert log == ["FA3", "back"]


def test_one_that_fails_is_said_and_left(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> Any:
        raise TypeError("too many values\nand more")

    assert trial_of("FA4", fails, WANTED) == Trial(fault="it fails here (TypeError: too many values)")
    assert log == ["FA4", "back"]
    monkeypatch.setattr(flash, "switch", fails)
    assert trial_of("FA4", fails, WANTED) == Trial(fault="torch cannot switch to it (TypeError: too many values)")
    assert log == ["FA4", "back"], "nothing was switched, so nothing is put back"


def test_the_fastest_of_those_that_are_right() -> None:
    trials = {"torch": Trial(1.0), "FA3": Trial(0.4), "FA4": Trial(fault="broken")}
    assert fastest(trials) == "FA3"
    assert told("FA3", trials) == "FA3, FA3 takes 40% of the time of torch's own, FA4: broken"
    assert fastest({"torch": Trial(1.0), "FA4": Trial(fault="broken")}) == "torch"
    assert told("torch", {"torch": Trial(1.0)}) == "torch's own flash attention"


def test_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package inside one that is not there is not there either; one that this torch does not know is of no use."""
    assert flash._found("json.decoder")
    assert not flash._found("no_such_package.cute")
    monkeypatch.setattr(flash, "_found", lambda module: True)
    monkeypatch.setattr(torch.nn.attention, "list_flash_attention_impls", lambda: ["FA4"], raising=False)
    assert flash.installed() == ["FA4"]
    monkeypatch.delattr(torch.nn.attention, "list_flash_attention_impls")
    assert flash.installed() == []
