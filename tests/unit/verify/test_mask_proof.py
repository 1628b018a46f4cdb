"""The mask's proof on real templates and real rows: silent where all is right, loud for each planted mistake."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dumbo.dataset.files import Files
from dumbo.errors import ProofFailed
from dumbo.formatter.chat import Chat
from dumbo.formatter.completion import Completion
from dumbo.formatter.jinja import Jinja
from dumbo.prepare.prepare import prepare
from dumbo.verify.mask import mask_proof

NAMES = ("smollm", "qwen3", "llama3", "gemma3")
TALK = ("fastchat/dummy_conversation.json", "gsm8k/test.jsonl")


@pytest.fixture(scope="session")
def tokenizer_of(tokenizer_folder: Callable[[str], Path], smollm_folder: Path) -> Callable[[str], Any]:
    from transformers import AutoTokenizer

    @functools.cache
    def load(name: str) -> Any:
        return AutoTokenizer.from_pretrained(smollm_folder if name == "smollm" else tokenizer_folder(name))

    return load


def proof(file: Path, tokenizer: Any, formatter: Any) -> str:
    """Prepares the rows and proves their mask."""
    splits = Files(path=str(file), limit=60, eval_fraction=0.0, on_bad_row="skip").load()
    prepared = prepare(splits, formatter, tokenizer, max_seq_len=4096, too_long="truncate_right")
    return mask_proof(splits, prepared.train, tokenizer, formatter)


def rows_proven(said: str) -> int:
    return int(said.split(" rows")[0].split()[-1])


@pytest.mark.parametrize("file", TALK)
@pytest.mark.parametrize("name", NAMES)
def test_right_masks_pass(name: str, file: str, data: Path, tokenizer_of: Any) -> None:
    for loss_on in ("assistant", "last", "all"):
        said = proof(data / file, tokenizer_of(name), Chat(loss_on=loss_on))
        assert rows_proven(said) > 40, said


@pytest.mark.parametrize("file", ["tools/glaive_toolcall_en_demo.json", "tools/reason_tool_use_demo_50.jsonl"])
def test_tools_and_reasoning_pass(file: str, data: Path, tokenizer_of: Any) -> None:
    assert rows_proven(proof(data / file, tokenizer_of("qwen3"), Chat())) > 20
    assert rows_proven(proof(data / file, tokenizer_of("smollm"), Chat(tool_calls="as_text"))) > 20


def test_other_formatters_pass(data: Path, tokenizer_of: Any) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}### Question\n{{ m.content }}\n{% else %}### Answer\n"
        "{{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}### Answer\n{% endif %}"
    )
    for formatter in (Jinja(template=template), Completion()):
        assert rows_proven(proof(data / "gsm8k/test.jsonl", tokenizer_of("smollm"), formatter)) > 40


class Planted(Chat):
    """Marks other tokens than Chat."""

    def format(self, rows: Any, tokenizer: Any) -> Any:
        examples = super().format(rows, tokenizer)
        for example in examples:
            if hasattr(example, "labels"):
                ids = np.asarray(example.input_ids)
                trained = self.change(np.asarray(example.labels) != -100)  # type: ignore[attr-defined]
                trained[0] = False
                example.labels = np.where(trained, ids, -100)
        return examples


class Later(Planted):
    def change(self, trained: np.ndarray) -> np.ndarray:
        return np.roll(trained, 1)


class Earlier(Planted):
    def change(self, trained: np.ndarray) -> np.ndarray:
        return np.roll(trained, -1)


class Opposite(Planted):
    def change(self, trained: np.ndarray) -> np.ndarray:
        return ~trained


class Everything(Planted):
    def change(self, trained: np.ndarray) -> np.ndarray:
        return np.ones_like(trained)


class FirstTurnMissing(Planted):
    def change(self, trained: np.ndarray) -> np.ndarray:
        trained = trained.copy()
        start = int(np.argmax(trained))
        trained[start : start + int(np.argmin(trained[start:]))] = False
        return trained


@pytest.mark.parametrize("planted", [Later, Earlier, Opposite, Everything, FirstTurnMissing])
@pytest.mark.parametrize("name", NAMES)
def test_wrong_masks_do_not(
    name: str, planted: Any, data: Path, tokenizer_of: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("DUMBO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ProofFailed, match=r"The mask is wrong at .*dummy_conversation.json, "):
        proof(data / TALK[0], tokenizer_of(name), planted())


def test_reasoning_typed_into_answers_passes(tmp_path: Path, tokenizer_of: Any) -> None:
    """Qwen3's template leaves the reasoning of earlier turns out: that is no wrong mask."""
    file = tmp_path / "reasons.jsonl"
    said = [
        ("user", "What is one and one?"), ("assistant", "<think>\nOne more than one.\n</think>\n\nIt is two."),
        ("user", "And one more?"), ("assistant", "<think>\nTwo and one.\n</think>\n\nThat makes three."),
    ]  # fmt: skip
    rows = [{"messages": [{"role": role, "content": f"{text} {n}"} for role, text in said]} for n in (7, 8)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert rows_proven(proof(file, tokenizer_of("qwen3"), Chat())) == 2
    with pytest.raises(ProofFailed, match="the assistant's turn is not among the trained tokens"):
        proof(file, tokenizer_of("qwen3"), _FirstUntrained())


class _FirstUntrained(Chat):
    """Trains the last turn alone, and does not say so."""

    def format(self, rows: Any, tokenizer: Any) -> Any:
        return Chat(loss_on="last").format(rows, tokenizer)
