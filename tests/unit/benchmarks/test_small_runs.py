"""Every benchmark runs small, from its one command, and leaves a result that says where it was measured. No time limits."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(module: str, folder: Path, *words: object) -> dict[str, Any]:
    """The result of `python -m benchmarks.MODULE --small`, run from the checkout."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--small", "--out", str(folder), *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    file = Path(done.stdout.strip().splitlines()[-1])
    assert file.parent == folder
    found = json.loads(file.read_text())
    assert found["command"].startswith(f"python -m benchmarks.{module} --small")
    assert found["hardware"]["cpu_cores"] >= 1
    assert {"dumbo", "python", "torch", "transformers"} <= set(found["versions"])
    assert len(found["load_before_and_after"]) == 2
    return found


def test_packing(tmp_path):
    table = run("packing", tmp_path)["table"]
    assert {row["lengths"] for row in table} == {"lognormal", "gsm8k-like"}
    assert all(row["documents"] == 5000 and row["percent_filled"] > 99 for row in table)


@pytest.mark.full
def test_sweep(tmp_path):
    found = run("sweep", tmp_path)
    assert [row["sweep.cpu_slots"] for row in found["table"]] == [1, 2]
    assert all(row["added_seconds_per_job"] > 0 for row in found["table"])
    assert found["ledger"]["rows"] == 10_000


def test_startup(tmp_path):
    found = run("startup", tmp_path)
    assert [row["command"] for row in found["table"]][:2] == ["dumbo --help", "dumbo --cfg job"]
    assert found["second_start"]["rows"] == 200
    assert 0 < found["second_start"]["second_s"] < found["second_start"]["first_s"]


def test_preparation(tmp_path, data):
    words = ("--without-peers", "--tokenizer", "tiny", "--data", data / "gsm8k" / "train.jsonl", "--cores", 1, 2)
    table = run("prepare", tmp_path, *words)["table"]
    assert [row["cores"] for row in table] == [1, 2]
    for ours in (row["dumbo"] for row in table):
        assert ours["rows"] == 300
        assert 0 < ours["trained_tokens"] < ours["tokens"]
        assert ours["second_start_s"] < ours["seconds"]
        assert ours["cpu_seconds"] > 0


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is the extra `bench`")
def test_preparation_beside_trl(tmp_path, data, smollm_folder):
    words = ("--tokenizer", smollm_folder, "--data", data / "gsm8k" / "train.jsonl", "--cores", 1)
    [row] = run("prepare", tmp_path, *words)["table"]
    assert row["trl"]["tokens"] == row["dumbo"]["tokens"]
    assert row["trl"]["trained_tokens"] == row["dumbo"]["trained_tokens"] + 300  # the newline after each end of turn
    assert row["times_trl"] > 0


def test_memory_watch(tmp_path, data):
    words = ("--memory-gib", 0.004, "--tokenizer", "tiny", "--data", data / "gsm8k" / "train.jsonl", "--cores", 1)
    found = run("prepare", tmp_path, *words)
    assert found["rows"] == 7473
    assert found["peak_mib"] > 0
    assert found["peak_mib_of_all"] > 0


def test_step_overhead(tmp_path):
    [row] = run("step_overhead", tmp_path)["table"]
    assert row["weights_apart"] < 1e-3
    assert 0 < row["percent_outside"] < 100


def test_step_overhead_with_a_patch_on_both_sides(tmp_path):
    [row] = run("step_overhead", tmp_path, "--patches", "chunked_loss")["table"]
    assert (tmp_path / "step_overhead_cpu_patched_tiny.json").exists()
    assert row["patches"] == ["chunked_loss"]
    assert row["weights_apart"] < 1e-3


ANOTHER_ORDER = """
import dataclasses
from benchmarks import step_overhead

bare = step_overhead._bare
step_overhead._bare = lambda sft, *rest: bare(dataclasses.replace(sft, seed=7), *rest)
step_overhead.main()
"""


def test_step_overhead_notices_another_training(tmp_path):
    """A bare loop over the same documents in another order has about the same loss."""
    words = [
        "--shape",
        "tiny",
        "--steps",
        "3",
        "--warm",
        "1",
        "--rounds",
        "1",
        "--capacity",
        "128",
        "--out",
        str(tmp_path),
    ]
    command = [sys.executable, "-c", ANOTHER_ORDER, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "AssertionError: the two did not train alike" in done.stderr


def test_chart(tmp_path):
    import xml.etree.ElementTree

    ours, theirs = ({"tokens_per_s": value} for value in (2.5e6, 4e5))
    result = {
        "rows_file": "10 x <train>",
        "hardware": {"cpu": "A & B"},
        "table": [{"cores": 2, "dumbo": ours, "trl": theirs}],
    }
    (tmp_path / "prepare.json").write_text(json.dumps(result))
    command = [sys.executable, "-m", "benchmarks.chart", "--results", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    drawing = xml.etree.ElementTree.parse(tmp_path / "chart.svg").getroot()
    texts = [element.text for element in drawing if element.tag.endswith("text")]
    assert texts[1:] == ["dumbo, 2 cores", "2.50 M", "TRL SFTTrainer, 2 cores", "400 k"]


def test_chart_of_training(tmp_path):
    """Like beside like: the fastest of ours in one run with the peer, with all layers checkpointed or none; rows that failed are
    left out.
    """
    import xml.etree.ElementTree

    same = {
        "shape": "llama8b",
        "work": "lora",
        "packs": 4,
        "max_seq_len": 2048,
        "documents": "lognormal lengths",
        "hardware": {"gpu": "G"},
    }
    rows = [
        {**same, "variant": variant, "tokens_per_s": median, "mean_tokens_per_s": 1.0}
        for variant, median in (
            ("tiles", 1e4),
            ("tiles_fused", 2e4),
            ("tiles_checkpointed", 9e3),
            ("tiles_checkpointed_16", 1.5e4),
        )
    ]
    rows += [
        {**same, "variant": "trl", "tokens_per_s": 1e4},
        {**same, "variant": "trl_checkpointed", "tokens_per_s": 6e3},
    ]
    rows += [{**same, "packs": 8, "variant": "trl", "failed": "exit code 1"}]
    rows += [{**same, "variant": "auto", "tokens_per_s": 9e4, "run": "another day"}]
    whole = {**same, "max_seq_len": 4096, "documents": "all as long as a pack"}
    rows += [
        {**whole, "variant": "tiles", "tokens_per_s": 1.1e4},
        {**whole, "variant": "trl", "tokens_per_s": 1e4},
    ]
    (tmp_path / "h200_tokens_beside_trl.json").write_text(json.dumps(rows))
    command = [sys.executable, "-m", "benchmarks.chart", "--results", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    drawing = xml.etree.ElementTree.parse(tmp_path / "chart_gpu.svg").getroot()
    texts = [element.text for element in drawing if element.tag.endswith("text")]
    assert texts[1:] == ["Llama-3.1-8B, LoRA: dumbo", "20 k, 2.00 x", "TRL", "10 k",
                         "Llama-3.1-8B, LoRA, checkpointed: dumbo", "9 k, 1.50 x", "TRL", "6 k",
                         "Llama-3.1-8B, LoRA, rows of 4,096: dumbo", "11 k, 1.10 x", "TRL", "10 k"]  # fmt: skip


@pytest.mark.full
def test_memory(tmp_path):
    [row] = run("memory", tmp_path)["rows"]
    assert row["shape"] == "tiny"
    assert row["predicted"] == sum(row["parts"].values())
    assert row["measured"] > 2**20


@pytest.mark.full
def test_answers_alone(tmp_path, data, smollm_folder):
    """Both runs train on the same packs; what differs is how many tokens bear a loss."""
    file = tmp_path / "answers.json"
    words = ["--data", data / "gsm8k" / "train.jsonl", "--tokenizer", smollm_folder, "--out", file, "--tiny"]
    words += ["--shapes", "135m", "--steps", "6", "--warmup", "2"]
    command = [sys.executable, "-m", "benchmarks.answers_alone", *map(str, words)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    every, answers = json.loads(file.read_text())["rows"]
    assert (every["loss_on"], answers["loss_on"]) == ("all", "assistant")
    assert every["packing"] == answers["packing"]
    assert answers["patches"]["chunked_loss"].startswith("applied")
    assert str(tmp_path) not in answers["command"]
    assert 0.3 < answers["trained_share"] < 0.8 < every["trained_share"]
    assert every["tokens_per_s"] > 0
    assert answers["tokens_per_s"] > 0
