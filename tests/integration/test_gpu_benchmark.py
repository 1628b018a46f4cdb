"""`python -m benchmarks.gpu` runs end to end on the tiny shape, and counts what it says it counts."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.full
def test_a_row_of_it(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = [
        "--shapes",
        "tiny",
        "--work",
        "full",
        "--variants",
        "chunked",
        "trl",
        "--steps",
        "6",
        "--warmup",
        "2",
        "--packs",
        "2",
        "--full-rows",
        "--longest",
        "64",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *words, "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    row, peer = json.loads(out.read_text())
    assert (row["shape"], row["work"], row["variant"]) == ("tiny", "full", "chunked")
    assert row["steps_measured"] == 4
    assert row["tokens_per_s"] > 0
    assert row["versions"]["torch"]
    assert row["patches"]["chunked_loss"].startswith("applied")
    assert (row["max_seq_len"], row["documents"]) == (64, "all as long as a pack")
    assert "trainer.max_seq_len=64" in row["command"]
    to = row["seconds_to"]
    assert 0 < to["data"] <= to["model"] <= to["proofs"] <= to["training"] <= to["result"] <= row["wall_s"]
    assert to["proofs"] <= row["seconds_to_it"] <= to["result"]
    assert peer["variant"] == "trl"
    assert row["run"] == peer["run"]
    assert len(row["losses"]) == 1
    if "failed" not in peer:
        assert peer["hardware"]
        assert len(peer["losses"]) == 1
    if (ROOT / ".git").exists():
        assert len(row["git"]["commit"]) == 40


def test_the_table_has_its_rows_and_only_those_that_are_named() -> None:
    from benchmarks.cases import TABLE, cases, steps
    from benchmarks.gpu import PEERS, VARIANTS

    asked = argparse.Namespace(table=True, shapes=None, work=None, variants=None, full_rows=False)
    assert cases(asked) == list(TABLE)
    assert {name for case in TABLE for name in case.variants} <= {*VARIANTS, *PEERS}
    asked = argparse.Namespace(
        table=True, shapes=["llama1b", "llama8b"], work=["lora"], variants=["auto", "trl_default"], full_rows=False
    )
    found = cases(asked)
    assert [(case.shape, case.packs, case.variants) for case in found] == [
        ("llama1b", 16, ("auto", "trl_default")), ("llama8b", 4, ("auto", "trl_default")),
        ("llama8b", 2, ("auto", "trl_default")),
    ]  # fmt: skip
    asked.full_rows = True
    assert [(case.shape, case.packs) for case in cases(asked)] == [("llama8b", 2)]
    assert steps(found[0], "trl_default", asked) == (30, 6)
    assert steps(found[0], "auto", asked) == (438, 414)  # 16 layers: 7,008 layers times steps, so that auto compiles


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--table", "--steps", "9"], "--table has its own --steps"), (["--table", "--variants", "tiles"], "no such row")],
)
def test_the_table_takes_no_word_without_a_meaning(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.gpu import main

    with pytest.raises(SystemExit):
        main([*words, "--out", str(tmp_path / "out.json")])
    assert said in capsys.readouterr().err


def test_a_row_says_what_was_set_for_torch_but_not_where_kernels_lie() -> None:
    from benchmarks.gpu import settings_of

    there = {"PATH": "a", "TORCHINDUCTOR_CACHE_DIR": "b", "TORCHINDUCTOR_COMPILE_THREADS": "8",
             "PYTORCH_ALLOC_CONF": "expandable_segments:True", "TORCHINDUCTOR_PERSISTENT_REDUCTIONS": "0",
             "PYTORCH_VERSION": "2.11"}  # fmt: skip
    assert settings_of(there) == {
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "TORCHINDUCTOR_PERSISTENT_REDUCTIONS": "0",
    }
    assert settings_of({"PATH": "a"}) == {}


def test_a_row_measured_anew_takes_the_place_of_an_earlier_one() -> None:
    from benchmarks.gpu import HEAD, with_row

    row: dict[str, Any] = {key: "x" for key in HEAD if key not in ("more", "environment")} | {
        "run": "monday",
        "tokens_per_s": 1,
    }
    again, failed = {**row, "run": "tuesday", "tokens_per_s": 2}, {**row, "run": "tuesday", "failed": "memory"}
    assert with_row([row], again) == [again]
    assert with_row([row], failed) == [row]
    assert with_row([{**row, "failed": "memory"}], failed) == [failed]
    assert with_row([row], {**row, "tokens_per_s": 2}) == [row, {**row, "tokens_per_s": 2}], (
        "asked for twice in one run"
    )
    for more in ({"more": ["a=b"]}, {"environment": {"A": "b"}}):
        assert with_row([row], {**again, **more}) == [row, {**again, **more}]
    assert with_row([{"shape": "x"}], again) == [{"shape": "x"}, again]


def test_losses_are_means_of_ten_steps() -> None:
    from benchmarks.one_run import by_tens

    assert by_tens([{"step": step, "loss": float(step)} for step in range(1, 24)]) == [5.5, 15.5]
    assert by_tens([{"step": step, "loss": float(step)} for step in (5, 10, 15)]) == [7.5]
    assert by_tens([{"step": step, "loss": float(step)} for step in (1, 2, 3)]) == [2.0]


@pytest.mark.parametrize(("variant", "auto"), [("auto", True), ("auto_masters", True), ("tiles", False)])
def test_patches_are_named_by_hand_or_left_to_auto(variant: str, auto: bool) -> None:
    from benchmarks.gpu import words_of

    asked = argparse.Namespace(patches=[], longest=None, packs=2, log_every=1, words=[])
    words = words_of(Path("folder"), "tiny", "lora", variant, asked)
    assert [word for word in words if word.startswith("performance=")] == [f"performance={'auto' if auto else 'off'}"]
    assert ("patch=[lora]" in words) is auto
    done = subprocess.run(
        [sys.executable, "-m", "dumbo", *words, "--cfg", "job"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_speed_is_of_the_steps_after_the_warm_up() -> None:
    from benchmarks.one_run import speed

    rows = [{"step": step, "tokens": 100 * step + 7, "step_ms": took, "data_wait_ms": 1.0, "mfu": 0.5,
             "tokens_per_s": 100_000 / took}
            for step, took in ((1, 9000.0), (10, 9000.0), (20, 50.0), (30, 50.0), (40, 200.0))]  # fmt: skip
    found = speed(rows, 10)
    assert found == {"steps_measured": 30, "tokens_per_s": 2000.0, "mean_tokens_per_s": 1000.0, "mfu": 0.5, "step_ms": 100.0,
                     "data_wait_ms": 1.0, "first_step_s": 9.0}  # fmt: skip
    with pytest.raises(AssertionError, match="no logged interval lies after 40"):
        speed(rows, 40)


def test_the_first_fast_step_comes_after_what_was_slow() -> None:
    from benchmarks.one_run import warm_up

    rows = [{"step": step, "step_ms": took, "tokens_per_s": speed}
            for step, took, speed in ((1, 3000.0, 10.0), (3, 500.0, 70.0), (5, 100.0, 95.0), (7, 100.0, 100.0), (9, 100.0, 102.0))]  # fmt: skip
    seen = {"proofs": 20.0, "training": 24.0}
    assert warm_up(rows, 5, seen) == {"first_fast_step": 4, "seconds_to_it": 25.0, "seconds_to": seen}
