"""A run that left no model: the error names the newest one here that has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dumbo.outputs.runs import without_model


def run(name: str, started: str, status: str = "finished", model: bool = True) -> Path:
    folder = Path("outputs/day") / name
    (folder / "model").mkdir(parents=True) if model else folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"started": started, "status": status}))
    return folder


def test_the_newest_that_has_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed = run("c", "2026-11-03", "failed", model=False)
    assert str(without_model(failed)) == (
        "run: outputs/day/c has no model/ (its status is failed).\n  Write run=FOLDER, of a run that has one, or of a model."
    )
    run("a", "2026-11-02")
    run("b", "2026-11-01")
    assert str(without_model(failed, " to export")) == (
        "run: outputs/day/c has no model/ to export (its status is failed).\n  The newest here that has one: run=outputs/day/a"
    )
