"""A sweep's folder: the same command finds it again, a changed base is shown, a lock keeps a second sweep out."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dumbo.errors import UserError
from dumbo.outputs.console import Console
from dumbo.outputs.run_dir import RunDir
from dumbo.slurm.queue import Queued
from dumbo.slurm.verb import cancel_submitted, up_to_date
from dumbo.sweep.folder import (
    HOME,
    Holder,
    SweepLock,
    base_differences,
    default_folder,
    holder_of,
    is_locked,
    read_sweep,
    require_sweep,
    write_sweep,
)
from dumbo.sweep.ledger import Ledger, Row

HOLDS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # who was started in the background has it ignored
from pathlib import Path
from dumbo.sweep.folder import SweepLock
lock = SweepLock(Path(sys.argv[1]))
lock.take(print)
print("taken", flush=True)
{then}
"""


def holding(folder: Path, then: str = "time.sleep(60)") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS.format(then=then), str(folder)], stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    return process


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dumbo.sweep.folder.SECONDS_TO_TAKE", 0.1)


def test_the_name_is_of_the_command() -> None:
    fixed, swept = ["model=tiny", "trainer.max_steps=5"], ["trainer.lr", "patch.lora.rank"]
    folder = default_folder(fixed, swept, None)
    assert folder.parent == HOME
    assert folder.name.startswith("lr-rank-")
    assert default_folder(fixed[::-1], swept, None) == folder, "the order of words is no matter"
    assert default_folder([*fixed, "hydra/launcher=gpu_pool", "sweep.retries=3"], swept, None) == folder
    others = [
        default_folder([*fixed, "trainer.seed=1"], swept, None), default_folder(fixed, swept[:1], None),
        default_folder(fixed, swept, Path("/x/mine.yaml")), default_folder(fixed, swept, None, [Path("/x")]),
    ]  # fmt: skip
    assert len({folder, *others}) == 5


@pytest.mark.parametrize("key", ["+experiment", "a.b c/../d", "ü.ü", "x" * 300, "+tracker@tracker.x"])
def test_names_are_safe(key: str) -> None:
    name = default_folder([], [key], None).name
    assert "/" not in name
    assert name.isascii()
    assert len(name) <= 70
    assert name.strip(".")


def test_what_it_is_and_what_changed(tmp_path: Path) -> None:
    assert read_sweep(tmp_path) == {}
    base = {"trainer": {"lr": 1e-3, "log_every": 1}, "sweep": {"retries": 1}}
    write_sweep(tmp_path, {"typed": ["trainer.seed=1,2"]}, base)
    assert require_sweep(tmp_path)["typed"] == ["trainer.seed=1,2"]
    assert base_differences(tmp_path, base) == []
    other = {"trainer": {"lr": 3e-3, "log_every": 5}, "sweep": {"retries": 7}}
    assert base_differences(tmp_path, other) == ["trainer.lr: 0.001 -> 0.003"], "only what changes numbers"


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_what_is_no_sweep_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match="is not what a sweep writes"):
        read_sweep(tmp_path)


def test_a_folder_that_is_none_names_those_that_are(tmp_path: Path) -> None:
    (tmp_path / HOME / "lr-1234").mkdir(parents=True)
    write_sweep(tmp_path / HOME / "lr-1234", {"typed": []}, {})
    with pytest.raises(UserError, match=r"'no' is not a sweep's folder.*\n.*lr-1234"):
        require_sweep(Path("no"))


def test_a_second_sweep_is_kept_out(tmp_path: Path) -> None:
    process = holding(tmp_path)
    try:
        assert is_locked(tmp_path)
        assert holder_of(tmp_path) == Holder(process.pid, os.uname().nodename, holder_of(tmp_path).born)
        with pytest.raises(UserError, match=rf"process {process.pid} is running the sweep .* at this moment"):
            SweepLock(tmp_path).take(print)
    finally:
        process.kill()
        process.wait()
    assert not is_locked(tmp_path)
    assert not holder_of(tmp_path).lives
    lock = SweepLock(tmp_path)
    lock.take(pytest.fail)
    assert holder_of(tmp_path).pid == os.getpid()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    lock.release()
    assert not is_locked(tmp_path)


def test_what_a_killed_sweep_left_behind_is_waited_for(tmp_path: Path) -> None:
    """Its job has the lock too, until it ends."""
    process = holding(tmp_path, "import os\nif os.fork():\n    os.kill(os.getpid(), 9)\ntime.sleep(1.5)")
    process.wait()
    assert is_locked(tmp_path)
    said: list[str] = []
    lock = SweepLock(tmp_path)
    lock.take(said.append)
    lock.release()
    assert said == ["jobs of a sweep that was killed are saving what they have"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        SweepLock(tmp_path / "file" / "sweep").take(print)


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(file: object, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")  # what Lustre says, mounted without flock

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(UserError, match=r"cannot be locked \(Function not implemented\)"):
        SweepLock(tmp_path).take(print)
    with pytest.raises(UserError, match=r"run_dir: .* cannot be locked"):
        RunDir(path=tmp_path, console=Console(io.StringIO()), started=0.0).claim()


def test_a_number_that_was_given_out_again_is_another_process() -> None:
    me = Holder.me()
    assert me.lives
    assert not Holder(me.pid, me.host, 1).lives
    assert Holder(me.pid, "elsewhere", 1).lives, "nobody can know"


def test_a_process_that_is_over_and_not_noticed_holds_nothing(tmp_path: Path) -> None:
    """In a container nobody may: a killed sweep would be taken for a live one while its jobs save."""
    process = holding(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not holder_of(tmp_path).lives
    process.wait()


def test_jobs_in_slurm_are_seen_while_somebody_else_writes_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "000").mkdir()
    (tmp_path / "000" / "run.json").write_text('{"status": "finished", "metrics": {"eval_loss": 1.0}}')
    ledger = Ledger.open(tmp_path)
    ledger.put([Row(number=0, name="000", device="slurm 5")])
    before = ledger.path.read_text()
    monkeypatch.setattr("dumbo.slurm.rows.queued", lambda jobs: {"5": Queued("COMPLETED", code=0)})
    monkeypatch.setattr("dumbo.slurm.verb.is_locked", lambda folder: False)  # a moment ago nobody did
    process = holding(tmp_path)
    try:
        assert [row.state for row in up_to_date(tmp_path, Ledger.open(tmp_path))] == ["done"]
        assert ledger.path.read_text() == before
    finally:
        process.kill()
        process.wait()
    assert [row.state for row in up_to_date(tmp_path, Ledger.open(tmp_path))] == ["done"]
    assert Ledger.open(tmp_path)[0].result == 1.0


def test_a_search_in_slurm_that_is_cancelled_asks_for_no_more_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sweep(tmp_path, {"sweeper": "optuna"}, {})
    ledger = Ledger.open(tmp_path)
    ledger.put([Row(number=0, name="000", device="slurm 5")])
    cancelled: list[str] = []
    monkeypatch.setattr("dumbo.slurm.queue.cancel", cancelled.extend)
    process = holding(tmp_path)
    assert cancel_submitted(Console(io.StringIO()), tmp_path, ledger) == 0
    assert process.wait(60) != 0
    assert cancelled == ["5"]
