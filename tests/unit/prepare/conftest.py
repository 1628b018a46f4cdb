"""Small pieces that the tests of preparation share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dumbo.dataset.files import Files
from dumbo.formatter.text import Text
from dumbo.prepare.prepare import prepare
from dumbo.prepare.store import PreparedSplits


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    from dumbo.model.tiny import Tiny

    return Tiny().load_tokenizer()


@pytest.fixture(scope="session")
def smollm_tokenizer(smollm_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm_folder)


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own; what is in its folder of prepared data can be counted."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DUMBO_CACHE", str(folder))
    return folder / "prepared"


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """(rows) -> the path of a file that holds them."""

    def write(rows: Sequence[Any], name: str = "rows.jsonl") -> str:
        file = tmp_path / name
        file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(file)

    return write


@pytest.fixture
def prepared(tiny_tokenizer: Any) -> Callable[..., PreparedSplits]:
    """(path, formatter, …) -> prepared splits, with the tiny tokenizer unless another is given."""

    def run(
        path: Any, formatter: Any = None, max_seq_len: int = 1 << 16, too_long: str = "truncate_right", **options: Any
    ) -> PreparedSplits:
        tokenizer = options.pop("tokenizer", tiny_tokenizer)
        options = {"eval_fraction": 0.0, **options}
        splits = Files(path=path, **options).load()
        return prepare(splits, formatter or Text(), tokenizer, max_seq_len=max_seq_len, too_long=too_long)

    return run
