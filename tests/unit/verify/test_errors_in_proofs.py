"""What ends a proof before it has proven anything: it is recorded as that proof's, the others go on, verify.json is there."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from proving import SMALL

from dumbo.cli import main
from dumbo.errors import RunFailed, Stopped, UserError
from dumbo.verify import verify
from dumbo.verify.proof import DoesNotApplyError, Proof, exact

WORDS = ["verify", "run_dir=here", *SMALL]


def _holds(subject: Any) -> Proof:
    return exact("second", "one thing and another", None)


def _raises(error: BaseException) -> Callable[[Any], Proof]:
    def proof(subject: Any) -> Proof:
        assert subject.trainer is not None  # it has the model in its hands
        raise error

    return proof


def _only(monkeypatch: pytest.MonkeyPatch, **proofs: Callable[[Any], Any]) -> None:
    monkeypatch.setattr(verify, "proofs", lambda: proofs)


def told() -> dict[str, Any]:
    return json.loads(Path("here/verify.json").read_text())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RunFailed("A process of verify was killed."), "A process of verify was killed."),
        (UserError("trainer.lr: not so."), "trainer.lr: not so."),
        (torch.OutOfMemoryError("CUDA out of memory."), "OutOfMemoryError: CUDA out of memory."),
        (MemoryError(), "MemoryError"),
        (KeyError("of a plugin"), "KeyError: 'of a plugin'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_it_is_that_proofs_and_the_others_go_on(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _only(monkeypatch, first=_raises(error), second=_holds)
    assert main(WORDS) == 4
    first, second = told()["proofs"]
    assert (first["name"], first["state"], first["passed"], first["error"]) == (
        "first",
        "error",
        False,
        type(error).__name__,
    )
    assert first["detail"].startswith(said + "\n")
    assert (second["state"], second["passed"], told()["passed"], told()["ended"]) == ("pass", True, False, None)
    shown = capsys.readouterr()
    assert "ERROR     first" in shown.out
    assert "1 of 2 proofs hold, 1 ended by an error" in shown.out
    assert "1 of 2 proofs do not hold: first (an error)" in shown.err
    log = Path("here/verify.log").read_text()
    assert "proof: first\nTraceback (most recent call last)" in log
    assert type(error).__name__ in log


def test_the_next_proof_gets_a_model_that_no_error_has_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def spoils(subject: Any) -> Proof:
        seen.append(subject.trainer)
        with torch.no_grad():
            next(subject.trainer.model.parameters()).zero_()
        raise RuntimeError

    def looks(subject: Any) -> Proof:
        seen.append(subject.trainer)
        return exact("looks", "weights", None if bool(next(subject.trainer.model.parameters()).any()) else "zero")

    _only(monkeypatch, first=spoils, second=looks)
    assert main(WORDS) == 4
    assert seen[0] is not seen[1]
    assert [proof["state"] for proof in told()["proofs"]] == ["error", "pass"]


@pytest.mark.parametrize(
    ("end", "code", "ended"),
    [(KeyboardInterrupt(), 130, "Ctrl-C"), (Stopped("SIGTERM", 143), 143, "SIGTERM")],
    ids=["ctrl-c", "in-training"],
)
def test_what_stops_all_leaves_what_was_proven(
    end: BaseException, code: int, ended: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _only(monkeypatch, second=_holds, first=_raises(end), third=_holds)
    assert main(WORDS) == code
    facts = told()
    assert [proof["name"] for proof in facts["proofs"]] == ["second"]
    assert (facts["passed"], facts["ended"]) == (None, ended)  # what was not proven is not passed
    assert "1 of the 1 proofs that were done hold" in capsys.readouterr().out


def test_sigterm_is_no_other_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a cluster sends it; the handler that was there is there again."""

    def terminated(subject: Any) -> Proof:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        raise AssertionError("not ended")

    before = signal.getsignal(signal.SIGTERM)
    _only(monkeypatch, first=_holds, second=terminated)
    assert main(WORDS) == 143
    assert (told()["ended"], len(told()["proofs"])) == ("SIGTERM", 1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_nothing_proven_is_no_pass(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def left_out(subject: Any) -> Proof:
        raise DoesNotApplyError("it means nothing here")

    _only(monkeypatch, first=left_out)
    assert main(WORDS) == 4
    assert "Nothing was proven: all proofs were left out." in capsys.readouterr().err
    assert (told()["passed"], told()["proofs"][0]["state"]) == (None, "left out")


def test_stopped_before_anything_was_proven_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _only(monkeypatch, first=_raises(KeyboardInterrupt()))
    assert main(WORDS) == 130
    assert not Path("here").exists()


def test_what_train_refuses_ends_it_as_in_train(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A patch that cannot be applied is no failure of ten proofs."""
    from dumbo.patch.lora import LoRA

    def refuses(self: LoRA, model: Any) -> Any:
        raise UserError("patch.lora: this model has no such layers.")

    monkeypatch.setattr(LoRA, "apply", refuses)
    assert main([*WORDS, "patch=[lora]"]) == 2
    assert "patch.lora: this model has no such layers." in capsys.readouterr().err
    assert not Path("here").exists()


def test_a_second_verify_keeps_the_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two", "three"):
        _only(monkeypatch, proof=lambda subject, name=name: exact(name, "", None))
        assert main(WORDS) == 0
    kept = [json.loads((Path("here") / f).read_text()) for f in ("verify-1.json", "verify-2.json", "verify.json")]
    assert [facts["proofs"][0]["name"] for facts in kept] == ["one", "two", "three"]
    assert "the one before it is here/verify-2.json now" in capsys.readouterr().out
    assert sorted(file.name for file in Path("here").iterdir()) == ["verify-1.json", "verify-2.json", "verify.json"]
