"""The real SmolLM2-135M-Instruct learns real GSM8K with LoRA on the CPU: the integration path.

Twenty steps take the held-out loss from about 1.46 to below 1.2, and generated answers take GSM8K's form: worked
steps with calculator marks `<<…>>` and a last line `#### N`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path, smollm_folder: Path) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("smollm") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "dumbo", "model=smollm_gguf", "patch=[liger,lora]", "dataset=gsm8k", f"dataset.path={data}/gsm8k/train.jsonl",
         f"dataset.eval_path={data}/gsm8k/test.jsonl", "dataset.limit=400", "dataset.eval_limit=24", "trainer.lr=2e-3",
         "trainer.warmup_steps=2", "trainer.max_seq_len=384", "trainer.global_batch_size=3", "trainer.micro_batch_size=3",
         "trainer.max_steps=20", "trainer.eval_every=null", "trainer.save_every=null", "trainer.num_answers=0", "trainer.num_samples=3",
         f"run_dir={folder}"],
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads((folder / "run.json").read_text())


def test_held_out_loss_falls(run: tuple[Path, dict[str, Any]]) -> None:
    metrics = run[1]["metrics"]
    assert metrics["steps"] == 20
    assert 1.35 < metrics["eval_loss_before"] < 1.65
    assert metrics["eval_loss"] < 1.2


def test_answers_take_the_form_of_the_data(run: tuple[Path, dict[str, Any]]) -> None:
    page = (run[0] / "samples.md").read_text()
    after = re.findall(r"After training\n\n(`+)text\n(.*?)\n\1", page, flags=re.S)
    before = re.findall(r"Before training\n\n(`+)text\n(.*?)\n\1", page, flags=re.S)
    assert len(after) == len(before) == 3
    assert not any("####" in text for _, text in before)
    assert sum(bool(re.search(r"<<[^<>]+=[^<>]+>>", text)) for _, text in after) >= 2
    assert sum(bool(re.search(r"^#### *\$?-?[\d.,]+", text, flags=re.M)) for _, text in after) >= 1


def test_patches_are_recorded(run: tuple[Path, dict[str, Any]]) -> None:
    patches = run[1]["patches"]
    assert patches["liger"] == "left out: no CUDA device" or patches["liger"].startswith("applied")
    assert patches["lora"].startswith("applied: 4,884,480 trainable parameters in 420 tensors")
    assert (run[0] / "model" / "adapter_model.safetensors").is_file()
    assert run[1]["model"]["sha256"]


def test_chat_answers_from_the_adapter(run: tuple[Path, dict[str, Any]]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dumbo", "chat", f"run={run[0]}", "chat.prompt=Tom has 3 apples and buys 4 more. How many apples has he?",
         "chat.max_new_tokens=100"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "<<" in done.stdout
