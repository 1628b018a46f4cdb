"""The card beside the weights."""

from __future__ import annotations

import pytest
import yaml

from dumbo.outputs.model_card import card


@pytest.mark.parametrize(
    ("path", "commit", "named"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "a1b2", True),
        ("gpt2", "a1b2", True),
        ("/models/mine", None, False),
        ("models/mine", None, False),
        ("~/.cache/huggingface/hub/models--a--b/snapshots/a1b2", "a1b2", False),
        ("SmolLM2.gguf", None, False),
    ],
)
def test_only_a_hub_id_is_a_base_model(path: str, commit: str | None, named: bool) -> None:
    """The hub refuses a card whose base_model is a folder."""
    facts = {"model": {"path": path, "commit": commit}, "versions": {"dumbo": "0.1.0", "torch": "<b>2</b>"}}
    text = card(facts, ["model=pretrained"])
    head = yaml.safe_load(text.split("---")[1])
    assert head.get("base_model") == (path if named else None)
    assert "<b>" not in text
