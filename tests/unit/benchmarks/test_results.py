"""The results that README and docs point to: whole, and each says on which hardware and with which versions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "NOTES.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_a_result_is_whole_and_says_where_it_is_from(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert json.loads(text)
    for key in ("hardware", "versions"):
        assert list(_under(json.loads(text), key)), f"no {key}"
    assert not re.search(r"/(dev/shm|tmp|root|home|work)/", text), "a folder of the machine that it was measured on"


def _under(found: Any, key: str) -> Any:
    """What stands under a key, wherever it is."""
    if isinstance(found, dict):
        yield from (value for name, value in found.items() if name == key and value)
    inside = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    for one in inside:
        yield from _under(one, key)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_results_that_are_named_are_there(page: Path) -> None:
    for name in re.findall(r"results/([\w.]+)", page.read_text(encoding="utf-8")):
        assert (ROOT / "benchmarks" / "results" / name.rstrip(".")).exists(), name
