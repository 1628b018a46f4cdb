"""A run's folder: one live process, whole files, metrics cut back on resume."""

from __future__ import annotations

import fcntl
import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dumbo.errors import UserError
from dumbo.outputs.console import Console
from dumbo.outputs.run_dir import RunDir
from dumbo.outputs.runs import find_run, is_claimed


def run_in(folder: Path) -> RunDir:
    return RunDir(path=folder, console=Console(io.StringIO()), started=time.time())


def test_a_live_run_keeps_its_folder_and_a_dead_one_does_not(tmp_path: Path) -> None:
    code = "import sys,time,io;from pathlib import Path;from dumbo.outputs.run_dir import RunDir;from dumbo.outputs.console import Console;"
    code += (
        "run=RunDir(Path(sys.argv[1]),Console(io.StringIO()),0.0);run.claim();print('mine',flush=True);time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "mine"
        with pytest.raises(UserError, match="another run is using"):
            run_in(tmp_path / "run").claim()
    finally:
        other.kill()
        other.wait()
    run_in(tmp_path / "run").claim()  # the system let go of the lock


def test_who_looks_whether_a_folder_is_claimed_is_no_run(tmp_path: Path) -> None:
    """Neither for another one that looks, nor for a run that begins at that moment."""
    with (tmp_path / ".lock").open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert not is_claimed(tmp_path)
        threading.Timer(0.1, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        run = run_in(tmp_path)
        run.claim()
        assert is_claimed(tmp_path)
        run.release()
    assert not is_claimed(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run_in(tmp_path / "file" / "run").claim()


def test_metrics_are_cut_back_and_a_torn_line_ends_them(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    for step in range(1, 6):
        run.log_metrics({"step": step, "loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5]
    run.cut_metrics(3)
    run.log_metrics({"step": 4, "loss": 0.5})
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_numbers_that_json_lacks_are_null_and_named(tmp_path: Path) -> None:
    run_in(tmp_path).log_metrics({"step": 1, "loss": float("nan"), "lr": 0.1})
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert row == {"step": 1, "loss": None, "lr": 0.1, "not_finite": ["loss"]}


def test_run_json_is_replaced_whole(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    run.update(status="running", values=[1, float("inf")])
    run.update(status="finished")
    assert json.loads((tmp_path / "run.json").read_text()) == {"status": "finished", "values": [1, None]}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_last_is_the_run_that_started_last(tmp_path: Path) -> None:
    for name, started in (
        ("outputs/d/b", "2026-01-02"),
        ("outputs/d/a", "2026-01-03"),
        ("multirun_outputs/d/t/0", "2026-01-01"),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text(json.dumps({"started": started}))
    assert find_run("last") == Path("outputs/d/a")
    assert find_run(str(tmp_path / "outputs/d/b")).name == "b"


@pytest.mark.parametrize(
    ("asked", "said"), [(None, "Which run"), ("nowhere", "not a run's folder"), ("last", "no run below")]
)
def test_no_such_run(asked: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_run(asked)
