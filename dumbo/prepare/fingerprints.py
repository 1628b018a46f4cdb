"""What the key of prepared data is made of: tokenizer, formatter, rows. Each changes when a token could.

prepare.py asks before it looks for a store. A user's code counts by its source files (sources.py); of dumbo's own,
those listed in `formatter_fingerprint`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.cache import key_of
from dumbo.interfaces import Formatter, RowBatches
from dumbo.prepare.sources import code_without_file, source_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Changes when any text could be tokenised or rendered differently, the libraries that do it among the causes."""
    parts = [
        *(f"{name} {version(name)}" for name in ("transformers", "tokenizers", "jinja2")),
        tokenizer.backend_tokenizer.to_str(),
        json.dumps(tokenizer.chat_template, sort_keys=True),
        json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def formatter_fingerprint(formatter: Formatter) -> str:
    """Changes with the formatter's options, its source, and the source of whatever turns rows into tokens here."""
    here = Path(__file__).resolve().parent
    package = here.parent
    sources = [
        *sorted((package / "formatter").glob("*.py")),
        *sorted((package / "dataset").glob("*.py")),
        here / "prepare.py",
        here / "documents.py",
        here / "parts.py",
        here / "pieces.py",
        here / "counting.py",
        here / "fingerprints.py",
        here / "store.py",
    ]
    sources += [file for file in source_files(type(formatter)) if file not in sources]
    options: Any = (
        asdict(formatter) if is_dataclass(formatter) and not isinstance(formatter, type) else repr(vars(formatter))
    )
    text = getattr(formatter, "text", None)
    parts = {
        "class": f"{type(formatter).__module__}.{type(formatter).__qualname__}",
        "options": options,
        "template": text() if callable(text) else None,
        "code": code_without_file(type(formatter)),
        "sources": [hashlib.sha256(source.read_bytes()).hexdigest() for source in sources],
    }
    return key_of(parts)


def rows_fingerprint(batches: RowBatches) -> list[str]:
    """Changes with rows held in a list, or the source of a user's class that yields them (`Splits.fingerprint` aside)."""
    if isinstance(batches, list | tuple):
        return [hashlib.sha256(repr(batches).encode()).hexdigest()]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in source_files(type(batches))]
