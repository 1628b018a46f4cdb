"""What is written down of a config holds no secret."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from dumbo.outputs.secrets import hidden_keys, is_secret, masked, masked_words, masked_yaml


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


SECRETS = (
    "token", "hub_token", "github_token", "hf_token", "push_to_hub_token", "x.access_token", "api_key", "apiKey", "X-Api-Key", "wandb_key",
    "aws_secret_access_key", "db_password", "passwords", "client_secret", "credentials", "connection_string", "Authorization",
)  # fmt: skip
NO_SECRETS = (
    "pad_token", "eos_token", "bos_token", "unk_token", "sep_token", "cls_token", "mask_token", "image_token", "video_token",
    "boi_token", "decoder_start_token", "added_tokens", "max_new_tokens", "tokenizer", "key", "keys", "pad_token_id", "secretary", "lr",
)  # fmt: skip


def test_what_is_called_like_a_secret() -> None:
    assert [name for name in SECRETS if not is_secret(name)] == []
    assert [name for name in NO_SECRETS if is_secret(name)] == []


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ('x={api_key: "ab,cd"}', 'x={api_key:"***"}'),
        ("x={api_key: 'ab}cd', lr: 1e-4}", 'x={api_key:"***",lr:0.0001}'),
        ("x=[{name: a, token: abcd}]", 'x=[{name:a,token:"***"}]'),
        ("x={a: {b: {password: abcd}}}", 'x={a:{b:{password:"***"}}}'),
        ("x={credentials: {user: abcd, port: 12}}", 'x={credentials:{user:"***",port:"***"}}'),
        ("x.credentials={user: abcd}", 'x.credentials={user:"***"}'),
        ("x.password=12345", "x.password=***"),
        ("x.hub_token=hf_abcd", "x.hub_token=***"),
        ("x.api_key=abcd,efgh", "x.api_key=***"),
        ("x={token: abcd},{token: efgh}", "x=***"),
        ("x.api_key=${oc.env:K,abcd}", "x.api_key=***"),
        ('x={"api_key": abcd}', "x=***"),
        ("x.uri=https://me:ab@cd@host/p", "x.uri=https://***@host/p"),
    ],
)
def test_no_value_of_a_secret_in_a_word(word: str, written: str) -> None:
    assert masked_words([word]) == [written]


@pytest.mark.parametrize(
    "word",
    [
        "model.tokenizer.added_tokens=['<a>',\"b\"]", "x={api_key: ${oc.env:K}}", "x.api_key=null", "x.api_key=", "patch=liger,lora",
        "trainer.lr=1e-4,3e-4", "x={b: 1e-4,a: '1'}", "--config-dir=api_key", "~tracker", "mine.yaml", "formatter.template='***'",
    ],
)  # fmt: skip
def test_other_words_stay_as_they_were_typed(word: str) -> None:
    assert masked_words([word]) == [word]


def test_what_is_hidden_in_a_word_is_named() -> None:
    assert hidden_keys('x={a: [1, {b: 2}], c: {api_key: "***", lr: 1}}') == ["x.c.api_key"]
    assert hidden_keys("++x.uri=https://***@host") == ["x.uri"]
    assert hidden_keys("formatter.template='** *** **'") == []


def test_a_copied_file_holds_no_secret() -> None:
    text = (
        "# api_key: in-a-comment\ntracker:\n  x: {api_key: in-a-flow, name: run}\n  y:\n    token: |\n      in-a\n      block\n"
        "  z: {token: >-\n    folded-in,\n  uri: 'https://me:pw-in-uri@host'}\n  w: [{hub_token: in-a-list}]\n  v: {password: 12345}\n"
        "hydra: {sweeper: {params: {tracker.x.api_key: 'swept-a,swept-b', trainer.lr: '1e-4,3e-4'}}}\n"
        "trainer: {lr: 1e-3, note: '1e-3', extra: null}\nmodel: {pad_token: <p>, k: '${trainer.lr}', secret: '${oc.env:P}'}\n"
    ).replace("token: >-\n    folded-in", "token: folded-in")
    written = masked_yaml(text)
    for secret in ("in-a", "block", "folded", "pw-in-uri", "12345", "swept"):
        assert secret not in written
    kept = OmegaConf.to_container(OmegaConf.create(written))
    assert kept["trainer"] == {"lr": 1e-3, "note": "1e-3", "extra": None}
    assert kept["model"] == {"pad_token": "<p>", "k": "${trainer.lr}", "secret": "${oc.env:P}"}
    assert kept["tracker"]["x"] == {"api_key": "***", "name": "run"}
    assert kept["hydra"]["sweeper"]["params"]["trainer.lr"] == "1e-4,3e-4"


def test_a_reference_to_a_masked_value_stays_one() -> None:
    cfg = OmegaConf.create({"x": {"api_key": "abcdef", "n": 1}, "copy": "key ${x.api_key}", "one": "${x.n}"})
    assert masked(cfg) == {"x": {"api_key": "***", "n": 1}, "copy": "key ${x.api_key}", "one": 1}
