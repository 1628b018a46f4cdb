"""The four real tokenizers, and what their templates do, written down by hand from the models' documentation."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dumbo.dataset.files import Files
from dumbo.interfaces import Example, Row

NAMES = ("smollm", "qwen3", "llama3", "gemma3")


@dataclass(frozen=True)
class Known:
    """A real tokenizer, with the texts between which its template puts what the assistant says."""

    name: str
    tokenizer: Any
    opening: str
    end: str

    def turns(self, rendering: str) -> list[tuple[int, int]]:
        """[start, end) of each assistant turn, its end token included, by a search for the known header and end."""
        pattern = f"{re.escape(self.opening)}(.*?{re.escape(self.end)})"
        return [match.span(1) for match in re.finditer(pattern, rendering, re.DOTALL)]

    def trained(self, rendering: str) -> list[bool]:
        """Which tokens of a rendering begin inside an assistant turn, token by token."""
        encoded = self.tokenizer(rendering, add_special_tokens=False, return_offsets_mapping=True)
        turns = self.turns(rendering)
        return [any(a <= start < b for a, b in turns) for start, _ in encoded["offset_mapping"]]


OPENINGS = {
    "smollm": ("<|im_start|>assistant\n", "<|im_end|>"),
    "qwen3": ("<|im_start|>assistant\n", "<|im_end|>"),
    "llama3": ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    "gemma3": ("<start_of_turn>model\n", "<end_of_turn>"),
}


@pytest.fixture(scope="session")
def known(tokenizer_folder: Callable[[str], Path], smollm_folder: Path) -> Callable[[str], Known]:
    """Name -> the real tokenizer of that model."""
    from transformers import AutoTokenizer

    @functools.cache
    def load(name: str) -> Known:
        folder = smollm_folder if name == "smollm" else tokenizer_folder(name)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.chat_template, f"{name} has a chat template of its own"
        return Known(name, tokenizer, *OPENINGS[name])

    return load


@pytest.fixture(scope="session")
def rows_of(data: Path) -> Callable[..., list[Row]]:
    """File below the data folder -> its rows, none of them bad."""

    @functools.cache
    def read(name: str, limit: int | None = None) -> list[Row]:
        rows = [row for batch in Files(path=str(data / name), limit=limit).load().train for row in batch]
        assert rows
        assert all(isinstance(row, Row) for row in rows)
        return rows  # type: ignore[return-value]

    return read


@pytest.fixture(scope="session")
def spans() -> Callable[[Any, Example], list[str]]:
    """(tokenizer, example) -> the decoded runs of trained tokens."""

    def decoded(tokenizer: Any, example: Example) -> list[str]:
        runs: list[list[int]] = []
        before = False
        for token, label in zip(example.input_ids, example.labels, strict=True):
            trained = int(label) != -100
            if trained and not before:
                runs.append([])
            if trained:
                runs[-1].append(int(token))
            before = trained
        return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]

    return decoded
