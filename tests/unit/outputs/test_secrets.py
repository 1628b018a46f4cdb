"""What is written down of a config holds no secret."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from dumbo.outputs.secrets import masked, masked_words


def test_environment_stays_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "hunter2")
    cfg = OmegaConf.create({"tracker": {"project": "${oc.env:MY_KEY}", "copy": "${lr}"}, "lr": 0.1})
    assert masked(cfg) == {"tracker": {"project": "${oc.env:MY_KEY}", "copy": 0.1}, "lr": 0.1}


def test_a_reference_to_a_secret_stays_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "hunter2")
    cfg = OmegaConf.create(
        {"secrets": {"main": "${oc.env:MY_KEY}"}, "used": "${secrets.main}", "listed": ["${secrets.main}"]}
    )
    assert "hunter2" not in str(masked(cfg))


def test_values_of_secret_keys_are_masked() -> None:
    cfg = OmegaConf.create(
        {"wandb": {"api_key": "abc", "password": None}, "model": {"pad_token": "<pad>", "added_tokens": ["<x>"]}}
    )
    assert masked(cfg) == {
        "wandb": {"api_key": "***", "password": None},
        "model": {"pad_token": "<pad>", "added_tokens": ["<x>"]},
    }


def test_typed_words() -> None:
    words = [
        "tracker.x.api_key=abc",
        "++tracker.x.password=b",
        "model.tokenizer.pad_token=<pad>",
        "k.api_key=${oc.env:K}",
        "train",
    ]
    assert masked_words(words) == ["tracker.x.api_key=***", "++tracker.x.password=***", *words[2:]]
