"""Jobs of a sweep that begin together prepare their data once."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from dumbo.cache import cache_folder, made_whole, one_at_a_time


def _make(target: Path, made: Path) -> None:
    with one_at_a_time(target):
        if not target.is_dir():
            with made_whole(target) as staging:
                (staging / "x").touch()
                time.sleep(0.3)
                with made.open("a") as file:
                    file.write("made\n")


def test_the_second_finds_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUMBO_CACHE", str(tmp_path / "cache"))
    target, made = cache_folder("prepared") / "abc", tmp_path / "made"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_make, args=(target, made)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert made.read_text() == "made\n"
    assert [path.name for path in target.parent.iterdir()] == ["abc"], "nothing is left beside it"
