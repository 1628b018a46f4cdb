"""The manifest of a checkpoint: hashes by hand, in parts and as they were before; a byte that differs anywhere is found."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest

from dumbo.trainer import manifest

CONTENT = {"weights": bytes(range(256)) * 10, "deep/state": b"state", "even": bytes(2000), "empty": b""}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """2,560 bytes are three parts, 2,000 are two, none is one."""
    monkeypatch.setattr(manifest, "PART", 1000)
    monkeypatch.setattr(manifest, "AT_ONCE", 300)
    for name, content in CONTENT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def by_hand(content: bytes) -> str:
    parts = [content[start : start + 1000] for start in range(0, max(1, len(content)), 1000)]
    return hashlib.blake2b(b"".join(hashlib.blake2b(part).digest() for part in parts)).hexdigest()[:32]


@pytest.mark.parametrize("cores", [1, 2, 16])
def test_hashes_are_those_of_the_parts(cores: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    manifest.write(folder)
    assert json.loads((folder / "manifest.json").read_text()) == {
        name: {"bytes": len(content), "blake2b": by_hand(content), "part": 1000} for name, content in CONTENT.items()
    }
    assert manifest.verify(folder) is None


@pytest.mark.parametrize("place", [0, 999, 1000, 1999, 2000, 2559])
@pytest.mark.parametrize("parts", [True, False], ids=["parts", "before"])
def test_a_byte_that_differs_is_found(place: int, parts: bool, folder: Path) -> None:
    """Manifests of before parts have the hash of the whole file."""
    if parts:
        manifest.write(folder)
    else:
        whole = {name: hashlib.blake2b(content).hexdigest()[:32] for name, content in CONTENT.items()}
        facts = {name: {"bytes": len(content), "blake2b": whole[name]} for name, content in CONTENT.items()}
        (folder / "manifest.json").write_text(json.dumps(facts))
    assert manifest.verify(folder) is None
    content = bytearray(CONTENT["weights"])
    content[place] ^= 1
    (folder / "weights").write_bytes(content)
    assert manifest.verify(folder) == f"{folder.name}: weights is corrupt (its hash differs from the manifest's)"


def test_small_files_take_no_thread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the address space is limited there may be none to be had."""
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr(manifest, "PART", 1 << 20)
    monkeypatch.setattr(manifest, "ThreadPoolExecutor", None)
    manifest.write(folder)
    assert manifest.verify(folder) is None


def test_where_no_thread_is_to_be_had_the_hashes_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def start(thread: threading.Thread) -> None:
        started.append(1)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr(threading.Thread, "start", start)
    manifest.write(folder)
    assert started
    facts = json.loads((folder / "manifest.json").read_text())
    assert {name: one["blake2b"] for name, one in facts.items()} == {name: by_hand(CONTENT[name]) for name in CONTENT}


def test_parts_that_change_places_are_found(folder: Path) -> None:
    manifest.write(folder)
    content = CONTENT["weights"]
    (folder / "weights").write_bytes(content[1000:2000] + content[:1000] + content[2000:])
    assert "weights is corrupt" in (manifest.verify(folder) or "")


@pytest.mark.parametrize("part", [0, -1, "a", None])
def test_a_part_that_is_none_is_not_read(part: object, folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps({"even": {"bytes": 2000, "blake2b": "0", "part": part}}))
    assert manifest.verify(folder) == f"{folder.name} has no readable manifest.json"
