"""`dumbo doctor`: what is here, what runs, and what to install."""

from __future__ import annotations

import json

import pytest

from dumbo import cli, hub


@pytest.fixture(autouse=True)
def _hub_asked_anew():
    hub.in_reach.cache_clear()
    yield
    hub.in_reach.cache_clear()


def run(capsys, *words: str) -> tuple[str, str]:
    assert cli.main(["doctor", *words]) == 0
    return capsys.readouterr()


def test_json(capsys):
    import torch
    import transformers

    out, _ = run(capsys, "doctor.format=json")
    facts = json.loads(out)
    assert set(facts) == {"versions", "hardware", "kernels", "extras", "hub", "cache", "models"}
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["transformers"] == transformers.__version__
    assert facts["hardware"]["cpu_cores"] >= 1
    assert facts["kernels"]["isolated packing"].startswith("usable, pack leak 0")
    assert facts["hub"].startswith("not in reach")  # HF_HUB_OFFLINE=1 in tests
    assert facts["models"]["tiny"].startswith("always")
    if not torch.cuda.is_available():
        assert "no CUDA device" in facts["kernels"]["liger"]
        assert "fp32" in facts["kernels"]["bf16"]
        assert facts["kernels"]["isolated packing"].endswith("ran in fp32")
        assert facts["kernels"]["varlen attention"].startswith("no CUDA device; packs take")
        assert "found, not run" in facts["kernels"]["torch.compile"] or "no C++" in facts["kernels"]["torch.compile"]
    assert "later version" not in out


def test_text(capsys):
    out, _ = run(capsys)
    assert "\x1b" not in out
    labels = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert labels == ["versions", "cpu", "gpu", "kernels", "extras", "models", "hub", "cache"]


def test_missing_extras_say_how_to_install_them(capsys, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in ("wandb", "gguf") else real(name, *rest)
    )
    facts = json.loads(run(capsys, "doctor.format=json")[0])
    assert facts["extras"]["wandb"] == "pip install 'dumbo[wandb]'"
    assert facts["extras"]["gguf"] == "pip install 'dumbo[gguf]'"


def test_cached_models_are_listed(capsys, monkeypatch, tmp_path):
    (tmp_path / "hub" / "models--Qwen--Qwen3-0.6B").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert json.loads(run(capsys, "doctor.format=json")[0])["models"]["Qwen/Qwen3-0.6B"] == "cached"


def test_a_cache_that_cannot_be_made_does_not_end_it(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DUMBO_CACHE", str(tmp_path / "file" / "cache"))
    assert "cannot be made" in json.loads(run(capsys, "doctor.format=json")[0])["cache"]


def test_packing_that_does_not_isolate_is_said(capsys, monkeypatch):
    from dumbo.errors import ProofFailed
    from dumbo.trainer import layout

    def fails(*_, **__):
        raise ProofFailed("documents see each other\nmore")

    monkeypatch.setattr(layout, "choose_layout", fails)
    facts = json.loads(run(capsys, "doctor.format=json")[0])
    assert facts["kernels"]["isolated packing"] == "not usable: documents see each other"


@pytest.mark.parametrize(("precision", "bf16"), [("bf16", True), ("fp32", False)])
def test_packing_is_probed_in_the_arithmetic_that_trains(monkeypatch, precision, bf16):
    from dumbo import doctor
    from dumbo.model import dtype
    from dumbo.trainer import layout

    asked = []
    real = layout.choose_layout

    def spy(*args, **kwargs):
        asked.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(dtype, "resolved_precision", lambda name: precision)
    monkeypatch.setattr(layout, "choose_layout", spy)
    assert doctor.kernels()["isolated packing"].endswith(f"ran in {precision}")
    assert asked == [{"bf16": bf16}]


def test_a_kernel_that_dies_or_computes_something_else_is_not_called_usable(monkeypatch):
    from dumbo import doctor

    def dies():
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setattr(doctor, "_liger", dies)
    assert doctor.kernels()["liger"] == "does not run: no kernel image is available"
    assert doctor._usable_when("a product", 1e-3) == "usable (ran a product, 1e-03 from the reference)"
    assert doctor._usable_when("a product", 0.3).startswith("wrong numbers: a product is 0.3")
    assert doctor._usable_when("a product", float("nan")).startswith("wrong numbers")
