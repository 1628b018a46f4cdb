"""The proofs that need other processes can fail: each planted bug is caught by exactly the proof that looks for it.

At every commit a few of them with all in one process; in .ci/full all of them by the command, with its processes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from proving import SMALL, failing, prove_all, subject_of

from dumbo.errors import RunFailed

PLANTED = Path(__file__).parent / "planted"
THESE = ("references", "determinism", "resume")
LORA = ["patch=[lora,planted]", "patch.lora.rank=4"]
OWN = ["patch=[planted]"]

CASES: list[tuple[str, list[str], str, str]] = [
    # bug, overrides, the proofs whose names begin so, what is said
    ("nothing_applied", OWN, "patches took", "planted: applied, and the model is as it was before"),
    ("adapter_not_zero", LORA, "patches = reference", "planted makes the difference"),
    ("adapter_scaled_twice", LORA, "patches = reference, gradients", "lora_B"),
    ("loss_off_by_a_percent", OWN, "patches = reference", "planted makes the difference"),
    ("gradient_dropped", OWN, "patches = reference, gradients", "The gradient of model.layers.0.mlp"),
    ("gradient_not_finite", OWN, "patches = reference, gradients", "planted makes the difference"),
    ("weights_rounded", OWN, "patches = reference", "planted makes the difference"),
    ("optimizer_dropped", OWN, "resume", "After the stop the run is another one"),
    ("schedule_reset", OWN, "resume", "After the stop the run is another one"),
    ("weights_not_loaded", OWN, "resume", "After the stop the run is another one"),
    ("position_lost", OWN, "resume", "After the stop the run is another one"),
    ("random_state_lost", [*LORA, "patch.lora.dropout=0.2"], "resume", "After the stop the run is another one"),
    ("moments_saved_in_half", OWN, "resume", "tensors are not what was saved: "),
    ("order_by_chance", OWN, "determinism", "in one run, "),
    ("seed_not_set", LORA, "determinism", "Loss of step 1 to 2"),
]


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be computed in a process of its own is computed here, by another Subject."""
    from dumbo.verify import references, steps
    from dumbo.verify.child import tasks
    from dumbo.verify.subject import Subject

    def here(subject: Any, name: str, task: str, **details: Any) -> dict[str, Any]:
        folder = subject.scratch / name
        folder.mkdir(parents=True, exist_ok=True)
        return tasks()[task](Subject(subject.plugins, folder), folder, **json.loads(json.dumps(details)))

    monkeypatch.setattr(references, "apart", here)
    monkeypatch.setattr(steps, "apart", here)


def names_of(found: dict[str, list[Any]], passed: bool | None) -> list[str]:
    return [proof.name for several in found.values() for proof in several if proof.passed is passed]


def test_without_a_bug_all_hold(one_process: None, tmp_path: Path) -> None:
    words = ["patch=[lora,gradient_checkpointing,compile]", "patch.lora.rank=4", "patch.lora.dropout=0.1"]
    found = prove_all(tmp_path, words, THESE)
    assert not failing(found)
    assert names_of(found, None) == ["compile = reference"]  # no CUDA device: said, not passed
    held = names_of(found, True)
    assert held == [
        "patches took", "patches = reference, loss", "patches = reference, gradients", "determinism", "resume, state", "resume",
    ]  # fmt: skip
    proofs = {proof.name: proof for several in found.values() for proof in several}
    assert proofs["resume"].difference == proofs["determinism"].difference == 0.0
    assert "28 of them of adapters" in proofs["patches = reference, gradients"].compared


@pytest.mark.parametrize("bug", ["optimizer_dropped"])
def test_a_bug_in_resuming(bug: str, one_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sys.path.insert(0, str(PLANTED))
    monkeypatch.setattr(sys, "path", sys.path[:])
    from planted import BUGS

    BUGS[bug](monkeypatch.setattr, None)
    failed = failing(prove_all(tmp_path, [], ("resume",)))
    assert list(failed) == ["resume"]
    assert "After the stop the run is another one" in failed["resume"]


@pytest.fixture
def adapters_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA that starts elsewhere than at the model."""
    from dumbo.patch.lora import LoRA

    right = LoRA.apply

    def wrong(self: LoRA, model: Any) -> Any:
        wrapped: Any = right(self, model)
        next(p for name, p in wrapped.named_parameters() if "lora_B" in name).data.fill_(0.01)
        return wrapped

    monkeypatch.setattr(LoRA, "apply", wrong)


def test_an_adapter_that_is_not_zero(one_process: None, adapters_not_zero: None, tmp_path: Path) -> None:
    failed = failing(prove_all(tmp_path, ["patch=[lora]"], ("references",)))
    assert list(failed) == ["references"]
    assert "lora makes the difference" in failed["references"]


@pytest.mark.parametrize("finite", [True, False])
def test_a_difference_that_is_meant_is_reported(
    finite: bool, one_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that a patch rounds, and says so: the distance, no judgement; one that is not a number fails all the same."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(PLANTED)])
    from planted import BUGS

    from dumbo.patch.gradient_checkpointing import GradientCheckpointing

    right = GradientCheckpointing.apply

    def coarse(self: GradientCheckpointing, model: Any) -> Any:
        model = right(self, model)
        BUGS["weights_rounded" if finite else "gradient_not_finite"](setattr, model)
        return model

    monkeypatch.setattr(GradientCheckpointing, "apply", coarse)
    monkeypatch.setattr(GradientCheckpointing, "approximates", lambda self: "weights in bf16", raising=False)
    words = ["patch=[lora,gradient_checkpointing]", "patch.lora.rank=4"]
    proofs = {
        proof.name: proof for several in prove_all(tmp_path, words, ("references",)).values() for proof in several
    }
    assert proofs["patches took"].passed
    for kind in ("loss", "gradients"):
        assert proofs[f"patches = reference, {kind}"].passed
        assert proofs[f"patches = reference, {kind}"].compared.startswith("lora: ")
        assert proofs[f"distance, {kind}"].compared.startswith("lora, gradient_checkpointing: ")
    loss, gradients = proofs["distance, loss"], proofs["distance, gradients"]
    if finite:
        assert [loss.state, gradients.state] == ["reported", "reported"]
        assert 1e-6 < loss.difference < 1e-2
        assert 1e-4 < gradients.difference < 0.5
        assert loss.detail == gradients.detail == "Not judged: patch.gradient_checkpointing: weights in bf16"
    else:
        assert gradients.state == "fail"
        assert gradients.detail == "It is not a finite number (patch.gradient_checkpointing: weights in bf16)."


def test_one_that_is_coarser_pardons_no_other(
    one_process: None, adapters_not_zero: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dumbo.patch.gradient_checkpointing import GradientCheckpointing

    monkeypatch.setattr(GradientCheckpointing, "approximates", lambda self: "nothing in truth", raising=False)
    failed = failing(prove_all(tmp_path, ["patch=[lora,gradient_checkpointing]", "patch.lora.rank=4"], ("references",)))
    assert "lora makes the difference" in failed["references"]


def test_a_child_is_none_of_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that started this one may be one of several; a child that took itself for one would wait for ever."""
    from dumbo.command import parse
    from dumbo.verify.apart import apart

    monkeypatch.setenv("DUMBO_CACHE", str(tmp_path / "cache"))
    subject = subject_of(tmp_path, [])
    subject.command = parse(["verify"])
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)  # fmt: skip
    told = apart(subject, "reference", "reference", documents=subject.documents)
    assert told["untaken"] == []
    assert len(told["norms"]) == 20
    with pytest.raises(RunFailed, match=r"(?s)KeyError: 'no such task'.*in a process of its own: again"):
        apart(subject, "again", "no such task")


@pytest.mark.full
@pytest.mark.parametrize(("bug", "words", "name", "said"), [pytest.param(*case, id=case[0]) for case in CASES])
def test_exactly_the_proof_that_looks_for_it_fails(
    bug: str, words: list[str], name: str, said: str, dumbo: Any, tmp_path: Path
) -> None:
    only = "references" if name.startswith("patches") else "determinism,resume"
    done = dumbo(
        "verify", f"--config-dir={PLANTED}", *SMALL, *words, f"patch.planted.bug={bug}", f"verify.only=[{only}]",
        "run_dir=proven", env={"DUMBO_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
    )  # fmt: skip
    assert done.code == 4, done.out + done.err
    proofs = json.loads(Path("proven/verify.json").read_text())["proofs"]
    failed = [proof for proof in proofs if proof["passed"] is False]
    assert failed
    assert all(proof["name"].startswith(name) for proof in failed), failed
    assert any(said in proof["detail"] for proof in failed), failed
    others = [proof for proof in proofs if not proof["name"].startswith(name) and proof["passed"] is not None]
    assert others or name == "determinism"
