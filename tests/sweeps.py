"""Sweeps for tests: jobs that do not run (what would be started is noted, and each leaves a finished run or what a test says),
and jobs that do, without the seconds of importing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dumbo.command import parse
from dumbo.refuse import typed_text
from dumbo.sweep import warm, warm_worker
from dumbo.sweep.job import Start, dying_with_parent

Ending = Callable[[Path, int], int]
"""(the run's folder, which start it is, from 0) -> exit code."""


def finished(folder: Path, number: int) -> int:
    """Leaves a finished run whose held-out loss is its number."""
    leave(
        folder,
        status="finished",
        config_hash="abc",
        metrics={"eval_loss": float(number), "train_loss": 1.0, "steps": 3},
    )
    return 0


def leave(folder: Path, **facts: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(facts))


class NotStarted:
    """In the place of `dumbo.sweep.runner.Warm`."""

    def __init__(self, ending: Ending = finished) -> None:
        self.ending = ending
        self.starts: list[Start] = []
        self.words: list[list[str]] = []

    def __call__(self, *arguments: object) -> NotStarted:
        return self

    def start(self, start: Start) -> Any:
        self.starts.append(start)
        self.words.append(start.words)
        folder = typed_text(parse(start.words).overrides, "run_dir")
        assert folder is not None
        code = self.ending(Path(folder), len(self.starts) - 1)

        class Ended:
            def poll(self) -> int:
                return code

            def signal(self, number: int) -> None:
                return None

        return Ended()

    def wait(self, seconds: float) -> None:
        return None

    def close(self) -> None:
        return None


def facts(folder: Path) -> list[dict[str, Any]]:
    """run.json of each run of a sweep."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*/run.json"))]


# ---- real jobs, forked from the test's own process: the worker's imports are there already ---------------------------------


class _Worker:
    """What `Warm` needs of the worker's process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self, timeout: float = 300) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < end, "the worker did not end with its socket"
            time.sleep(0.01)
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _forked(channel: int, lock: int | None, environment: dict[str, str]) -> _Worker:
    with_parent = dying_with_parent(signal.SIGKILL)
    pid = os.fork()
    if pid:
        return _Worker(pid)
    code = 99
    try:
        os.setsid()
        assert with_parent is not None
        with_parent()
        for number in map(int, os.listdir("/proc/self/fd")):
            if number > 2 and number not in (channel, lock):
                with suppress(OSError):
                    os.close(number)
        os.environ.update(environment)
        code = warm_worker.start(channel)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def fork_the_worker() -> None:
    """Prelude of a `processes.Command` that runs a sweep."""
    warm.worker_process = _forked  # type: ignore[assignment]
