"""`dumbo verify` as it is typed: the table, verify.json, exit codes, and what it leaves behind."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from proving import SMALL

from dumbo.cli import main
from dumbo.errors import UserError
from dumbo.verify.proof import Proof, measured, tolerance_for
from dumbo.verify.report import _finite
from dumbo.verify.table import numbers_of

FEW = ["verify.only=[mask,padding]", *SMALL]


def test_the_table_and_the_file_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *FEW]) == 0
    out = capsys.readouterr().out
    (file,) = Path("outputs").glob("*/*/verify.json")
    facts = json.loads(file.read_text())
    assert facts["passed"] is True
    assert [proof["name"] for proof in facts["proofs"]] == ["mask", "padding"]
    for proof in facts["proofs"]:
        assert f"pass      {proof['name']}" in out
    assert "allowed" in out
    assert "roundings" in facts["proofs"][1]["source"]
    assert out.splitlines()[0].endswith("verify")
    assert "2 of 2 proofs hold" in out
    assert str(file) in out


def test_json_is_one_object_and_goes_where_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "run_dir=here", "verify.format=json", *FEW]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads(Path("here/verify.json").read_text())
    assert not Path("outputs").exists()


def test_a_proof_that_fails_is_exit_code_4_and_the_others_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dumbo.verify import verify

    def fails(subject: Any) -> Proof:
        return measured("first", "one thing and another", math.nan, tolerance_for(torch.float32, 2), "They are apart.")

    real = verify.proofs()
    monkeypatch.setattr(verify, "proofs", lambda: {"mask": fails, "padding": real["padding"]})
    assert main(["verify", *FEW]) == 4
    said = capsys.readouterr()
    assert "FAIL      first" in said.out
    assert "They are apart." in said.out
    assert "pass      padding" in said.out
    assert "1 of 2 proofs do not hold: first" in said.err
    (file,) = Path("outputs").glob("*/*/verify.json")
    facts = json.loads(file.read_text())
    assert facts["passed"] is False
    assert facts["proofs"][0]["difference"] == "nan"


def test_a_name_that_no_proof_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "verify.only=[paddin]"]) == 2
    assert "there is no proof 'paddin'. Did you mean 'padding'?" in capsys.readouterr().err
    assert not list(Path("outputs").glob("*/*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verify", "verify.num_examples=1"], "num_examples must be at least 2"),
        (["verify", "dataset=files", "dataset.path=none.jsonl"], "none.jsonl"),
        (["-m", "verify", "trainer.lr=1,2"], "it cannot sweep over verify"),
    ],
)
def test_what_train_would_refuse_too(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_a_proven_folder_can_be_trained_in() -> None:
    from dumbo.outputs.claim import _folder

    folder = Path("run")
    folder.mkdir()
    for name in ("verify.json", "verify-1.json", "verify.log", "plan.json"):
        (folder / name).write_text("{}")
    options = type("Options", (), {"run_dir": "run", "resume": None})()
    plugins: Any = type("Plugins", (), {"options": options})()
    assert _folder(plugins, {}, "name") == (folder, False)
    (folder / "thesis.json").write_text("{}")
    with pytest.raises(UserError, match="not empty"):
        _folder(plugins, {}, "name")


@pytest.mark.full
def test_smollm_is_proven_in_three_minutes_of_two_cores(
    smollm_folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By processor time, children's included: what else runs on the machine does not count."""
    before = sum(os.times()[:4])
    words = ["model=smollm_gguf", "patch=[lora]", "dataset=gsm8k", f"dataset.path={data}/gsm8k/train.jsonl"]
    assert main(["verify", "verify.format=json", "trainer.max_seq_len=512", *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [proof["name"] for proof in facts["proofs"] if proof["passed"] is not True] == []
    assert sum(os.times()[:4]) - before < 2 * 180


def test_only_what_is_no_number_fails() -> None:
    allowed = tolerance_for(torch.bfloat16, 30, scale=2.0)
    assert allowed.value == pytest.approx(4 * 2**-7 * 61**0.5 * 2)
    assert allowed.source == "4 x eps(bfloat16) x sqrt(61 roundings) x 2"
    for difference, passed in ((0.0, True), (allowed.value, True), (2 * allowed.value, False), (math.inf, False)):
        assert measured("n", "c", difference, allowed, "fault").passed is passed
    assert measured("n", "c", math.nan, allowed, "fault").detail == "fault"
    assert numbers_of(measured("n", "c", 0.5, allowed, "")).startswith("difference 5.0e-01, allowed 4.9e-01")
    assert _finite(math.inf) == "inf"
