"""Jobs forked from a process that has imported everything: real processes with their own log, devices, signals and end."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dumbo.launch.processes import alive
from dumbo.sweep import warm as module
from dumbo.sweep.folder import SweepLock, is_locked
from dumbo.sweep.job import Cold, Process, Start, Starter
from dumbo.sweep.warm import Warm
from dumbo.sweep.warm_worker import Worker

READS = """
import sys
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Reads:
    def load_tokenizer(self):
        import os, time
        print("pid", os.getpid(), "group", os.getpgrp(), "devices", os.environ.get("CUDA_VISIBLE_DEVICES"),
              "in", sys.stdin.read() == "", flush=True)
        time.sleep(60)

    def load_model(self, tokenizer, **load_kwargs):
        raise NotImplementedError
"""


@pytest.fixture
def reads(tmp_path: Path) -> list[str]:
    """Words of a job that tells about its process, and then waits."""
    (tmp_path / "my" / "model").mkdir(parents=True)
    (tmp_path / "my" / "warm_test_model.py").write_text(READS)
    (tmp_path / "my" / "model" / "reads.yaml").write_text("_target_: warm_test_model.Reads\n")
    return [f"--config-dir={tmp_path / 'my'}", "train", "model=reads"]


def ended(starter: Starter, *jobs: Process, timeout: float = 300) -> list[int | None]:
    """Their exit codes."""
    end = time.monotonic() + timeout
    while any(job.poll() is None for job in jobs):
        assert time.monotonic() < end, "a job did not end"
        starter.wait(0.1)
    return [job.poll() for job in jobs]


def until(true: Callable[[], bool], timeout: float = 300) -> None:
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def told(log: Path) -> str:
    return log.read_text() if log.is_file() else ""


def test_jobs_of_a_warm_worker(tmp_path: Path, reads: list[str]) -> None:
    """Exit codes, logs, environment, a process group and a signal of their own; the sweep's lock; the worker's end."""
    lock = SweepLock(tmp_path)
    lock.take(print)
    cold: list[str] = []
    warm = Warm(lock.fileno(), {}, cold.append)
    version = warm.start(Start(words=["--version"], log=tmp_path / "version.log"))
    wrong = warm.start(Start(words=["trainer.lrr=1"], log=tmp_path / "wrong.log"))
    one = warm.start(
        Start(words=[*reads, "run_dir=one"], log=tmp_path / "one.log", environment={"CUDA_VISIBLE_DEVICES": "7"})
    )
    two = warm.start(Start(words=[*reads, "run_dir=two"], log=tmp_path / "two.log"))
    assert ended(warm, version, wrong) == [0, 2]
    assert cold == [], "nothing that is imported starts a thread"
    assert told(tmp_path / "version.log").startswith("dumbo ")
    assert "Did you mean trainer.lr?" in told(tmp_path / "wrong.log")
    until(lambda: "pid" in told(tmp_path / "one.log") and "pid" in told(tmp_path / "two.log"))
    first, second = told(tmp_path / "one.log"), told(tmp_path / "two.log")
    assert "devices 7 in True" in first
    assert "devices 7" not in second
    words = first[first.index("pid") :].split()
    assert words[1] == words[3], "a group of its own: Ctrl-C does not reach it by itself"
    assert one.poll() is None
    one.signal(signal.SIGTERM)
    two.signal(signal.SIGINT)
    assert ended(warm, one, two) == [143, 130]
    one.signal(signal.SIGTERM)  # nobody is there any more
    lock.release()
    assert is_locked(tmp_path), "the worker has it too"
    warm.close()
    assert not is_locked(tmp_path)


@pytest.mark.full
def test_the_slow_way_does_the_same(tmp_path: Path, reads: list[str]) -> None:
    cold = Cold()
    version = cold.start(Start(words=["--version"], log=tmp_path / "version.log"))
    one = cold.start(Start(words=reads, log=tmp_path / "one.log", environment={"CUDA_VISIBLE_DEVICES": "7"}))
    assert ended(cold, version) == [0]
    until(lambda: "pid" in told(tmp_path / "one.log"))
    assert "devices 7 in True" in told(tmp_path / "one.log")
    one.signal(signal.SIGTERM)
    assert ended(cold, one) == [143]


def worker_that(says: str) -> Callable[..., subprocess.Popen[bytes]]:
    """In the worker's place: a process that says something and ends."""
    code = "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.sendall(sys.argv[2].encode())"
    return lambda channel, lock, environment: subprocess.Popen(
        [sys.executable, "-c", code, str(channel), says], pass_fds=(channel,)
    )


@pytest.mark.parametrize(
    ("says", "why"), [('{"cold": "importing started threads (x)"}\n', "started threads"), ("", "starts them ended")]
)
def test_where_nothing_can_be_forked_jobs_import_for_themselves(
    says: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "worker_process", worker_that(says))
    said: list[str] = []
    warm = Warm(None, {}, said.append)
    early = warm.start(Start(words=["--version"], log=tmp_path / "early.log"))
    assert ended(warm, early) == [0]
    late = warm.start(Start(words=["--version"], log=tmp_path / "late.log"))
    assert ended(warm, late) == [0]
    assert len(said) == 1
    assert why in said[0]
    assert told(tmp_path / "early.log") == told(tmp_path / "late.log")
    warm.close()


def test_no_worker_where_none_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sweep.warm=false."""
    monkeypatch.setattr(module, "worker_process", lambda *arguments: pytest.fail("a worker was started"))
    warm = Warm(None, {}, pytest.fail, False)
    assert ended(warm, warm.start(Start(words=["--version"], log=tmp_path / "version.log"))) == [0]
    warm.close()


def test_a_machine_that_gives_no_more_processes_fails_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(theirs)
        assert worker._fork({"start": 7, "words": [], "log": str(tmp_path / "one.log"), "environment": {}}) is None
        assert ours.recv(1000) == b'{"ended": 7, "code": 1}\n'
    assert told(tmp_path / "one.log").startswith("The job could not be started: ")


@pytest.mark.full
def test_a_worker_that_dies_takes_its_jobs_along(tmp_path: Path, reads: list[str]) -> None:
    """The kernel asks them to stop; the loop hears of an end, and later jobs are started the slow way."""
    said: list[str] = []
    warm = Warm(None, {}, said.append)
    one = warm.start(Start(words=reads, log=tmp_path / "one.log"))
    until(lambda: bool(warm.wait(0)) or "pid" in told(tmp_path / "one.log"))
    until(lambda: one.poll() is None and one.pid is not None)  # type: ignore[attr-defined]
    os.kill(warm._worker.pid, signal.SIGKILL)  # type: ignore[union-attr]
    assert ended(warm, one) == [-signal.SIGTERM]
    assert not alive(one.pid)  # type: ignore[attr-defined]
    assert ended(warm, warm.start(Start(words=["--version"], log=tmp_path / "late.log"))) == [0]
    assert len(said) == 1
    warm.close()
