"""What is written down of a config holds no secret."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from dumbo.outputs.secrets import masked, masked_text, masked_words


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


def test_secrets_by_other_names_and_in_addresses() -> None:
    cfg = OmegaConf.create(
        {"a": {"aws_secret_access_key": "x", "secret_key": "y", "token": "hf_z", "api_token": "w", "eos_token": "</s>"},
         "uri": "https://me:pw@host/path"}
    )  # fmt: skip
    found = masked(cfg)
    assert set(list(found["a"].values())[:4]) == {"***"}
    assert found["a"]["eos_token"] == "</s>"
    assert found["uri"] == "https://***@host/path"
    assert masked_words(["tracker.mlflow.tracking_uri=https://me:pw@host"]) == [
        "tracker.mlflow.tracking_uri=https://***@host"
    ]


def test_a_copied_file_keeps_its_text_but_for_secrets() -> None:
    text = "# mine\ntracker:\n  x:\n    api_key: abc\n    password: ${oc.env:P}\n    name: run  # note\nmodel: {pad_token: <p>}\n"
    assert masked_text(text) == text.replace("abc", "***")
