from __future__ import annotations

import pytest

from dumbo.errors import UserError
from dumbo.patch.freeze import Freeze


def test_train_only_these(untied, one_step):
    model = Freeze(train=["lm_head", r"layers\.1\..*norm"]).apply(untied)
    assert one_step(model) == {
        "lm_head.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.post_attention_layernorm.weight",
    }


def test_freeze_only_these(untied, one_step):
    names = {name for name, _ in untied.named_parameters()}
    patch = Freeze(freeze=["embed_tokens"])
    model = patch.apply(untied)
    assert one_step(model) == names - {"model.embed_tokens.weight"}
    assert patch.evidence(model) == f"{97 * 32:,} parameters frozen in 1 tensors"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "give either train or freeze"),
        ({"train": ["a"], "freeze": ["b"]}, "give either train or freeze"),
        ({"train": ["("]}, "is not a regular expression"),
    ],
)
def test_wrong_keys(keys, said):
    with pytest.raises(UserError, match=said):
        Freeze(**keys)


def test_what_matches_nothing_is_named(untied, tiny):
    with pytest.raises(UserError, match=r"'lm_heat' matches no parameter.*Did you mean 'lm_head'"):
        Freeze(train=["lm_heat"]).check(untied)
    with pytest.raises(UserError, match="shares its weight with the embedding here: write embed_tokens"):
        Freeze(train=["lm_head"]).check(tiny)


def test_nothing_left_and_nothing_frozen(untied):
    with pytest.raises(UserError, match="nothing is left to train"):
        Freeze(freeze=["."]).check(untied)
    with pytest.raises(UserError, match="nothing is frozen"):
        Freeze(train=["."]).check(untied)


def test_evidence_wants_something_frozen(untied):
    with pytest.raises(RuntimeError, match="left every parameter trainable"):
        Freeze(freeze=["embed_tokens"]).evidence(untied)
