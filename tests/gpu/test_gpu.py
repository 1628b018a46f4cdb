"""On a CUDA device: Liger's kernels take and change no number, packing isolates in bf16, the headline command's patches train.

Run with `pytest -m gpu`; without a device they skip.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.gpu

TINY = [
    "trainer.max_steps=12",
    "dataset.limit=400",
    "dataset.eval_limit=20",
    "trainer.num_answers=0",
    "trainer.eval_every=null",
]


def small_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=1024)  # fmt: skip
    return LlamaForCausalLM(config).to("cuda")


def run(folder: Path, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "dumbo", *TINY, *words, f"run_dir={folder}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "run.json").read_text())


def test_liger_changes_no_number(tmp_path: Path) -> None:
    """Loss and gradients of a patched model against one computed before the patch ran (it replaces functions)."""
    from dumbo.patch.liger import Liger

    ids = torch.randint(0, 1024, (2, 128), device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    plain = small_llama()
    reference = plain(input_ids=ids, labels=ids).loss
    reference.backward()
    gradients = {name: p.grad.clone() for name, p in plain.named_parameters()}
    patch = Liger()
    model = patch.apply(small_llama())
    assert "5 norms" in patch.evidence(model)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert abs(float(loss) - float(reference)) < 2e-4 * float(reference)
    for name, parameter in model.named_parameters():
        scale = gradients[name].abs().max()
        assert (parameter.grad - gradients[name]).abs().max() <= 2e-2 * scale, name


def test_packing_isolates_in_bf16() -> None:
    from dumbo.trainer.layout import choose_layout

    layout, proof = choose_layout(small_llama().to(torch.bfloat16), True, "auto")
    assert layout == "tokens"
    assert "pack leak 0" in proof


def test_headline_patches_train(tmp_path: Path) -> None:
    facts = run(tmp_path / "run", "patch=[liger,lora]", "trainer.lr=1e-3")
    assert facts["patches"]["liger"].startswith("applied: kernels in"), facts["patches"]
    assert facts["patches"]["lora"].startswith("applied:")
    assert facts["hardware"]["gpu"]
    assert facts["metrics"]["peak_memory_gib"] > 0


def test_same_losses_with_and_without_liger(tmp_path: Path) -> None:
    words = ("trainer.precision=fp32", "trainer.warmup_steps=0", "trainer.lr=1e-3")
    with_liger = run(tmp_path / "with", "patch=[liger]", *words)["metrics"]
    without = run(tmp_path / "without", *words)["metrics"]
    assert abs(with_liger["train_loss"] - without["train_loss"]) < 5e-3 * without["train_loss"]
    assert with_liger["tokens"] == without["tokens"]


def test_bf16_trains_as_well_as_fp32(tmp_path: Path) -> None:
    bf16 = run(tmp_path / "bf16", "trainer.precision=bf16", "trainer.lr=1e-3")["metrics"]
    fp32 = run(tmp_path / "fp32", "trainer.precision=fp32", "trainer.lr=1e-3")["metrics"]
    assert abs(bf16["eval_loss"] - fp32["eval_loss"]) < 0.02 * fp32["eval_loss"]


def test_resume_goes_on_where_it_stopped(tmp_path: Path) -> None:
    words = ("trainer.save_every=6", "trainer.lr=1e-3", "trainer.num_samples=0")
    whole = run(tmp_path / "whole", *words)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    run(tmp_path / "parts", *words, "trainer.extra.use_cpu=false")
    again = tmp_path / "parts"
    for newer in sorted((again / "checkpoints").glob("step-*"))[1:]:
        subprocess.run(["rm", "-r", str(newer)], check=True)
    facts = json.loads((again / "run.json").read_text())
    (again / "run.json").write_text(json.dumps({**facts, "status": "preempted"}))
    done = subprocess.run(
        [sys.executable, "-m", "dumbo", f"resume={again}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    resumed = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    joined = [row["loss"] for row in resumed if "loss" in row]
    assert len(losses) == len(joined) == 12
    assert max(abs(a - b) / a for a, b in zip(losses, joined, strict=True)) < 1e-3
    assert whole["metrics"]["tokens"] == json.loads((again / "run.json").read_text())["metrics"]["tokens"]


def test_doctor_names_the_device(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dumbo", "doctor", "doctor.format=json"], capture_output=True, text=True, check=True
    )
    facts = json.loads(done.stdout)
    assert facts["hardware"]["gpu"] == torch.cuda.get_device_name()
    assert facts["kernels"]["bf16"] == "usable"
    assert facts["kernels"]["liger"] == "usable", facts["kernels"]["liger"]
