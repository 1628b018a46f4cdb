"""The saved tokenizer is read again as the model's was: code that comes with it runs where that was typed, and only there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from proving import failing, prove_all
from small_runs import model_of, tiny_tokenizer

OWN = (
    "from transformers import PreTrainedTokenizerFast\n\n\nclass OwnTokenizerFast(PreTrainedTokenizerFast):\n    pass\n"
)


@pytest.fixture
def model_with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose tokenizer is a class of its own."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "modules"), *sys.path])
    folder = tmp_path / "with_code"
    model_of().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    facts = {
        **json.loads(file.read_text()),
        "tokenizer_class": "OwnTokenizerFast",
        "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizerFast"]},
    }
    file.write_text(json.dumps(facts))
    (folder / "own.py").write_text(OWN)
    return folder


def test_a_tokenizer_with_code_of_its_own(model_with_code: Path, tmp_path: Path) -> None:
    words = ["model=pretrained", f"model.path={model_with_code}", "model.trust_remote_code=true"]
    found = prove_all(tmp_path, words, ("tokenisation",))
    assert not failing(found)
    assert [proof.state for proof in found["tokenisation"]] == ["pass"] * 3
