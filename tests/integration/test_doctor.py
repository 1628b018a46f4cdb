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

    def fails(*_):
        raise ProofFailed("documents see each other\nmore")

    monkeypatch.setattr(layout, "choose_layout", fails)
    facts = json.loads(run(capsys, "doctor.format=json")[0])
    assert facts["kernels"]["isolated packing"] == "not usable: documents see each other"
