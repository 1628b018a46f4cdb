"""What needs no SLURM: numbers as it writes them, parameters, shapes, the note, a warning that comes too early."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from lacking import needs

from dumbo.errors import Stopped, UserError
from dumbo.launch.slurm import refuse_other_shape, several_nodes
from dumbo.outputs.console import Console
from dumbo.slurm.note import Note
from dumbo.slurm.place import Place
from dumbo.slurm.pool import LOCAL_AT_ONCE, SlurmPool
from dumbo.slurm.queue import _code, _indices, cancel
from dumbo.slurm.rows import job_of, runs_here
from dumbo.slurm.submit import _make_own, checked_parameters
from dumbo.slurm.task import Heard, Task
from dumbo.sweep.ledger import Ledger, Row
from dumbo.sweep.pool import Grid, Job
from dumbo.trainer.signals import interruptible


@pytest.mark.parametrize(
    ("text", "found"), [("3", [3]), ("4-6%2", [4, 5, 6]), ("1,3-5", [1, 3, 4, 5]), ("0-8:4%1", [0, 4, 8])]
)
def test_tasks_of_an_array(text: str, found: list[int]) -> None:
    assert _indices(text) == found


def test_exit_codes() -> None:
    assert [_code("0:0"), _code("2:0"), _code("0:9"), _code("0:15")] == [0, 2, 137, 143]


def test_which_rows_are_in_slurm() -> None:
    devices = {
        "slurm 12_3": "12_3",
        "submitit 77": "77",
        "GPU 0": None,
        None: None,
        "slurm --user=me": None,
        "submitit ": None,
    }
    assert {device: job_of(Row(number=0, name="a", device=device)) for device in devices} == devices


def test_a_number_that_another_process_has_now_is_no_job() -> None:
    """Neither waited for, nor ended by `dumbo sweep cancel`."""
    sleeps = "import time; print(flush=True); time.sleep(60)"
    for words, ours in ((["submitit.local._local"], True), ([], False)):
        process = subprocess.Popen([sys.executable, "-c", sleeps, *words], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        assert runs_here(process.pid) == ours
        process.kill()
        process.wait()
        assert not runs_here(process.pid)


@pytest.mark.parametrize(
    ("code", "said", "found"),
    [
        ("exit 0", "", None),
        ("exit 1", "scancel: error: Kill job error on job id 5: Invalid job id specified", None),
        ("exit 1", "scancel: error: Kill job error on job id 6: Access/permission denied", "Access/permission denied"),
        ("exit 1", "", "no reason given"),
        ("sleep 5", "", "timed out"),
    ],
)
def test_what_scancel_says(
    code: str, said: str, found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dumbo.slurm.queue.SECONDS", 1)
    (tmp_path / "scancel").write_text(
        f"#!/bin/sh\n[ -z '{said}' ] || echo '{said}' >&2\nexec {code}\n".replace("exec exit", "exit")
    )
    (tmp_path / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    answer = cancel(["5", "6"])
    assert answer is None if found is None else found in str(answer)


def test_a_note_of_a_job_that_is_submitted_anew_counts_anew(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "a.json"
    assert Note.read(file) == Note()
    file.parent.mkdir()
    for left in ("", '{"job": "1", "att', "[]"):  # a node that is lost takes along what was not on the disk yet
        file.write_text(left)
        assert Note.read(file) == Note()
    file.write_text('{"job": "1", "colour": "of a later dumbo"}')
    assert Note.read(file) == Note(job="1")
    Note(job="1", attempt=3, timeouts=2, failures=1, step=7, seconds=5.0, code=1).write(file)
    same, other = Note.read(file).beginning("1"), Note.read(file).beginning("2")
    assert (same.attempt, same.timeouts, same.failures, same.step, same.code) == (4, 2, 1, 7, None)
    assert (other.attempt, other.timeouts, other.failures, other.step, other.seconds) == (4, 0, 0, -1, 5.0)


def task(folder: Path, **changes: object) -> Task:
    told: dict[str, object] = {
        "words": (), "run_dir": str(folder), "log": "", "note": "", "time_limit": 3600.0, "warning": 120.0, "max_timeouts": 2,
        "retries": 1,
    }  # fmt: skip
    return Task(**{**told, **changes})  # type: ignore[arg-type]


def heard(*numbers: int) -> Heard:
    found = Heard()
    found.numbers += numbers
    return found


def again(note: Note) -> Note:
    """The next start of a job, ended with code 0."""
    return replace(note.beginning(note.job), code=0)


def test_what_comes_after_a_start(tmp_path: Path) -> None:
    one, ended = task(tmp_path), Note(code=0)
    assert one._what_next(ended, heard(signal.SIGUSR2), 100.0).next == "preempted", "long before the time limit"
    late = one._what_next(ended, heard(signal.SIGUSR2), 3490.0)
    assert (late.next, late.timeouts) == ("time limit", 1)
    (tmp_path / "checkpoints" / "step-000007").mkdir(parents=True)
    further = one._what_next(again(late), heard(signal.SIGUSR2), 3490.0)
    assert (further.next, further.timeouts, further.step) == ("time limit", 2, 7)
    used_up = one._what_next(again(further), heard(signal.SIGUSR2), 3490.0)
    assert (used_up.next, "ended it 3 times" in used_up.said) == ("", True)
    patient = task(tmp_path, max_timeouts=9)
    first = patient._what_next(Note(code=0, timeouts=1, step=7), heard(signal.SIGUSR2), 3490.0)
    second = patient._what_next(again(first), heard(signal.SIGUSR2), 3490.0)
    assert (first.next, second.next) == ("time limit", "")
    assert "2 time limits of 60 minutes in a row ended it no step further than 7" in second.said
    failed = one._what_next(Note(code=1), heard(), 5.0)
    assert (failed.next, failed.failures) == ("failed", 1)
    assert one._what_next(replace(again(failed), code=1), heard(), 5.0).next == "", "once, as sweep.retries says"
    assert one._what_next(Note(code=2), heard(), 5.0).next == "", "what is to be mended is not tried again"
    (tmp_path / "run.json").write_text('{"status": "finished"}')
    assert one._what_next(ended, heard(signal.SIGUSR2), 3490.0).next == "", "it was done when it was told"


def test_parameters_are_checked() -> None:
    needs("hydra_plugins.hydra_submitit_launcher", "pip install 'dumbo[slurm]'")
    told = checked_parameters({"timeout_min": 30, "partition": None, "gpus_per_node": 2}, "slurm")
    assert (told["timeout_min"], told["partition"], told["gpus_per_node"]) == (30, None, 2)
    with pytest.raises(UserError, match=r"tasks_per_node=2.*one task a node"):
        checked_parameters({"tasks_per_node": 2}, "slurm")
    with pytest.raises(UserError, match=r"signal_delay_s=120 is no shorter"):
        checked_parameters({"timeout_min": 2, "signal_delay_s": 120}, "slurm")
    with pytest.raises(UserError, match=r"hydra\.launcher\.mem_gb"):
        checked_parameters({"mem_gb": "much"}, "slurm")
    with pytest.raises(UserError, match=r"hydra\.launcher\.comment=.*the next line would run"):
        checked_parameters({"comment": "night\ntouch /tmp/ran #"}, "slurm")


def test_what_jobs_load_lies_where_nobody_else_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sweep" / ".submitit"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    _make_own(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(UserError, match=r"\.submitit is another user's, who could change what your jobs run"):
        _make_own(folder)


def test_arrays_that_slurm_took_are_known_when_it_refuses_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the same command would submit them a second time."""
    monkeypatch.setattr("dumbo.slurm.submit.LONGEST_ARRAY", 2)

    def taken(tasks: list[Task], *others: object) -> list[str]:
        if len(tasks) < 2:
            raise UserError("SLURM does not take the job: AssocMaxSubmitJobLimit")
        return [f"7_{place}" for place in range(len(tasks))]

    monkeypatch.setattr("dumbo.slurm.pool.submit", taken)
    ledger = Ledger.open(tmp_path)
    ledger.put(Row(number=n, name=f"{n:03d}") for n in range(3))
    told = {"nodes": 1, "submitit_folder": "x", "timeout_min": 9, "signal_delay_s": 9, "max_num_timeout": 1}
    console = Console(io.StringIO())
    pool = SlurmPool(tmp_path, ledger, console, "eval_loss", 0, True, told, "slurm", 1)
    with pytest.raises(UserError, match="AssocMaxSubmitJobLimit"):
        pool.run(Grid.of(Job(number=n, name=f"{n:03d}", words=["train"]) for n in range(3)))
    assert [row.device for row in Ledger.open(tmp_path)] == ["slurm 7_0", "slurm 7_1", None]
    assert pool.at_once == LOCAL_AT_ONCE
    assert replace(pool, parameters={**told, "array_parallelism": 9}).at_once == 9, "a search tells Optuna so"


def test_the_shape_that_slurm_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    monkeypatch.setenv("SLURM_NNODES", "2")
    assert several_nodes() == 0, "an allocation, and no task of a step"
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert several_nodes() == 2
    refuse_other_shape(2)
    with pytest.raises(UserError, match=r"launch\.num_nodes=3, but SLURM gave this step 2 nodes"):
        refuse_other_shape(3)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    with pytest.raises(UserError, match=r"8 tasks on 2 nodes"):
        refuse_other_shape(2)


def test_a_warning_that_comes_before_anybody_listens_is_kept() -> None:
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        # to this thread: another one of pytest's process, which has it unblocked, would let it fall
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
        with pytest.raises(Stopped, match="SIGUSR2"), interruptible():
            time.sleep(60)
        assert signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, ()), "it is as it was"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, kept)
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("exit 0", None),
        ("kill -TERM $$", None),
        ("kill -KILL $$", None),
        ("echo 'Requested operation is presently disabled' >&2; exit 1", "Requested operation is presently disabled"),
        ("exit 1", "no reason given"),
    ],
)
def test_a_job_that_slurm_puts_back_is_ended_by_it(
    does: str, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it, at times scontrol before it has said that it is done: that is no refusal."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\n[ \"$*\" = 'requeue 12_3' ] || exit 9\n{does}\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert Place("12_3", 0, 1, in_slurm=True).again() == said
    assert Place("12_3", 0, 1, in_slurm=False).again() is None
