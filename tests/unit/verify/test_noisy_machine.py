"""Determinism and resume where a machine does not compute the same bits twice, as GPUs do not: here a CPU in bf16 whose
gradients are noisy by a part. What is lost on the way is seen all the same, and what cannot be told is said.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from proving import prove_all

from dumbo.verify import determinism, noise, resumed, steps
from dumbo.verify.child import tasks
from dumbo.verify.digests import digest, distances, farthest, kind_of, unequal
from dumbo.verify.noise import Seen, row_distances, worst
from dumbo.verify.subject import Subject

PLANTED = Path(__file__).parent / "planted"
NOISE = 0.003
"""Of each number of a gradient, relative: about what sums in another order leave of bf16."""
BF16 = ["trainer.precision=bf16"]


def noisy(monkeypatch: pytest.MonkeyPatch, amount: float) -> None:
    """Each gradient is multiplied by numbers that the trainer's seed does not set: others in every run, the same in every test."""
    from dumbo.model.tiny import Tiny

    right = Tiny.load_model
    chance = torch.Generator()
    chance.manual_seed(0)

    def load(self: Tiny, *args: Any, **kwargs: Any) -> Any:
        model = right(self, *args, **kwargs)
        for parameter in model.parameters():
            parameter.register_hook(lambda g: g * (1 + amount * torch.randn(g.shape, generator=chance)))
        return model

    monkeypatch.setattr(Tiny, "load_model", load)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """All in one process, on a machine that is as noisy as is asked for."""

    def here(subject: Any, name: str, task: str, **details: Any) -> dict[str, Any]:
        folder = subject.scratch / name
        folder.mkdir(parents=True, exist_ok=True)
        return json.loads(json.dumps(tasks()[task](Subject(subject.plugins, folder), folder, **details)))

    def prepared(amount: float = NOISE, bug: str | None = None) -> None:
        monkeypatch.setattr(steps, "apart", here)
        for module in (noise, determinism, resumed):
            monkeypatch.setattr(module, "bitwise_here", lambda: False)
        if amount:
            noisy(monkeypatch, amount)
        if bug is not None:
            monkeypatch.setattr(sys, "path", [str(PLANTED), *sys.path])
            from planted import BUGS

            BUGS[bug](monkeypatch.setattr, None)

    return prepared


def proven(folder: Path, words: list[str] = BF16) -> dict[str, Any]:
    found = prove_all(folder, words, ("determinism", "resume"))
    return {proof.name: proof for several in found.values() for proof in several}


@pytest.mark.full
def test_what_is_right_holds_within_what_was_measured(machine: Any, tmp_path: Path) -> None:
    machine()
    found = proven(tmp_path)
    assert {name: proof.passed for name, proof in found.items()} == {
        "determinism": True, "resume, state": True, "resume": True,
    }  # fmt: skip
    assert 0 < found["determinism"].difference < found["determinism"].tolerance == noise.TENTH
    assert 0 < found["resume"].difference < found["resume"].tolerance <= noise.TENTH
    assert "3 x what a repetition differs by" in found["resume"].source


LOST = [  # bug, passes of: what is loaded, the steps after it; how many times too far
    ("weights_not_loaded", False, False, 5),
    ("optimizer_dropped", False, False, 20),
    ("position_lost", True, False, 20),
    ("schedule_reset", True, False, float("inf")),
    ("moments_saved_in_half", False, True, 0),
]


@pytest.mark.parametrize(
    ("bug", "state", "steps_after", "times"),
    [pytest.param(*case, id=case[0], marks=pytest.mark.full if number else []) for number, case in enumerate(LOST)],
)
def test_what_is_lost_on_the_way_is_seen_through_the_noise(
    bug: str, state: bool, steps_after: bool, times: float, machine: Any, tmp_path: Path
) -> None:
    machine(bug=bug)
    found = proven(tmp_path)
    assert found["determinism"].passed
    assert (found["resume, state"].passed, found["resume"].passed) == (state, steps_after)
    assert found["resume"].difference >= times * max(found["resume"].tolerance, 1e-9)


@pytest.mark.full
def test_a_start_that_no_seed_sets_is_seen_through_the_noise(
    machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repetition differs by as much: what it is held against is another seed."""
    from dumbo.patch.lora import LoRA

    machine()
    monkeypatch.setattr(sys, "path", [str(PLANTED), *sys.path])
    from planted import seed_not_set

    right = LoRA.apply

    def wrong(self: LoRA, model: Any) -> Any:
        wrapped = right(self, model)
        seed_not_set(setattr, wrapped)
        return wrapped

    monkeypatch.setattr(LoRA, "apply", wrong)
    found = proven(tmp_path, [*BF16, "patch=[lora]"])
    assert found["determinism"].passed is False
    assert found["determinism"].difference > 5 * noise.TENTH
    assert (found["resume, state"].passed, found["resume"].passed) == (True, None)


@pytest.mark.full
def test_too_noisy_to_tell_is_said(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(amount=0.1, bug="position_lost")
    monkeypatch.setattr(resumed, "determinism", lambda subject: subject.shared.update(deterministic=True))
    monkeypatch.setattr(noise, "MULTIPLE", 100)
    (found,) = (proof for proof in prove_all(tmp_path, BF16, ("resume",))["resume"] if proof.name == "resume")
    assert found.passed is None
    assert found.detail.startswith("it cannot tell: a repetition of the run differs from it so much that ")


@pytest.mark.full
def test_equal_bits_need_no_repetition(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(amount=0)
    for module, name in ((determinism, "other_seed"), (resumed, "again")):
        monkeypatch.delattr(module, name)
    found = proven(tmp_path)
    assert [(proof.passed, proof.difference) for proof in found.values()] == [(True, 0.0), (True, None), (True, 0.0)]
    assert found["resume"].source == "bitwise"


# ---- the arithmetic ---------------------------------------------------------------------------------------------------


def test_what_is_furthest_over_decides() -> None:
    seen = [Seen("losses", 0.5, 1.0), Seen("weights", 0.2, 0.1), Seen("exp_avg", 0.01, 0.1)]
    assert worst(seen).what == "weights"
    assert not worst([*seen, Seen("gradient norms", float("nan"), 9.0)]).passed
    assert Seen("one", 0.0, 0.0).passed


def test_distances_are_of_all_tensors_of_a_kind() -> None:
    """By hand: two tensors of weights, one seen whole, one by every second number."""

    def told(*numbers: float, numel: int | None = None) -> dict[str, Any]:
        return {"hash": str(numbers), "numel": numel or len(numbers), "sample": list(numbers)}

    one = {"a": told(1.0, 2.0), "b": told(0.0, numel=2), "a (exp_avg)": told(3.0, 4.0), "a (step)": told(1.0)}
    other = {**one, "a": told(1.0, 5.0), "b": told(1.0, numel=2)}
    assert unequal(one, other) == ["a", "b"]
    assert distances(one, other) == {"weights": pytest.approx((9 + 2) ** 0.5), "exp_avg": 0.0}
    assert [kind_of(name) for name in one] == ["weights", "weights", "exp_avg", "step"]
    assert farthest(one, other) == (1.0, "2 of 4 tensors differ, most b")
    assert distances(one, {}) == {"weights": float("inf"), "exp_avg": float("inf")}
    assert farthest(one, {})[0] == float("inf")


def test_rows_differ_by_their_root_mean_square() -> None:
    rows = [{"loss": 2.0, "grad_norm": 1.0}, {"loss": 4.0, "grad_norm": 1.0}]
    near = [{"loss": 2.2, "grad_norm": 1.0}, {"loss": 4.0, "grad_norm": None}]
    found = row_distances(rows, near)
    assert found["losses"] == pytest.approx(0.1 / 2**0.5)
    assert not found["gradient norms"] <= 1.0


def test_masters_are_looked_at_each_by_its_weight() -> None:
    """Under one name the last one stood for all."""
    from dumbo.trainer.masters import keep_masters

    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 3, bias=False)).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    keep_masters(optimizer)
    model(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    found = digest(SimpleNamespace(model=model, _plain_optimizer=optimizer))
    names = {f"{n}.weight{key}" for n in (0, 1) for key in ("", " (master)", " (exp_avg)", " (exp_avg_sq)", " (step)")}
    assert set(found) == names
