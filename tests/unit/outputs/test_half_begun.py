"""A kill between the making of a run's folder and its run.json: the folder can be begun in again, and no other one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dumbo.cli import main
from dumbo.outputs.claim import begin


@pytest.fixture(autouse=True)
def _only_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dumbo.train.train", lambda plugins, composed, command: begin(plugins, composed, command).release() or {}
    )


def test_what_a_kill_left_is_begun_in_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in (".lock", "dumbo.log", "config.yaml", ".overrides.yaml.123", ".run.json.123"):
        (tmp_path / "run" / name).touch()
    for _ in range(2):  # the second time there is a run.json
        assert main(["run_dir=run", "resume=auto"]) == 0
        assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"
        assert (tmp_path / "run" / "config.yaml").stat().st_size > 500


@pytest.mark.parametrize(
    "names", [["config.yaml"], [".lock", "config.yaml", "notes.txt"], [".lock", ".env"], ["model"]]
)
def test_what_is_somebody_elses_is_not(names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    for name in names:
        (tmp_path / "run" / name).touch()
    assert main(["run_dir=run", "resume=auto"]) == 2
    assert "is not empty, and no run's" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(names)
