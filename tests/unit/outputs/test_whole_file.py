"""Files that are whole or as they were, and earlier ones that are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dumbo.errors import UserError
from dumbo.outputs.whole_file import keep_earlier, writable_folder, write_whole


def test_a_file_that_cannot_be_written_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "verify.json"
    write_whole(file, "first")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, "second")
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file]


def test_an_earlier_one_keeps_its_number(tmp_path: Path) -> None:
    file = tmp_path / "verify.json"
    assert keep_earlier(file) is None
    for number in range(3):
        kept = keep_earlier(file)
        write_whole(file, str(number))
        assert kept == (tmp_path / f"verify-{number}.json" if number else None)
    assert [(tmp_path / f"verify-{n}.json").read_text() for n in (1, 2)] == ["0", "1"]
    assert file.read_text() == "2"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run_dir: the folder .*file/here cannot be written"):
        writable_folder(tmp_path / "file" / "here")
    assert writable_folder(tmp_path / "new" / "one") == tmp_path / "new" / "one"
    assert (tmp_path / "new" / "one").is_dir()
