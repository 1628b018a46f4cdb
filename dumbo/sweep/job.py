"""One job of a sweep as a process of its own, its output in a file. It dies with the sweep: the kernel asks it to stop and save.

    Starter.start(Start) -> Process;  Process.poll() -> exit code, None while it runs

Two starters: `Cold` (here) starts Python anew; `warm.py` forks a process that has imported what a run imports.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

PARENT_DEATH_SIGNAL = 1
"""prctl's PR_SET_PDEATHSIG (Linux)."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What to start.

    Args:
        words: of the command line, behind `python -m dumbo`.
        log: the file that what it prints is appended to.
        environment: variables besides the sweep's own.
    """

    words: list[str]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)


class Process(Protocol):
    """A job that was started."""

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that ended it; None while it runs."""
        ...

    def signal(self, number: int) -> None:
        """Sends it a signal; nothing when it has ended."""
        ...


class Starter(Protocol):
    """What starts jobs."""

    def start(self, start: Start) -> Process: ...

    def wait(self, seconds: float) -> None:
        """Returns after so long, or when a job has ended."""
        ...

    def close(self) -> None:
        """Called when no job runs any more."""
        ...


class Cold:
    """Starts `python -m dumbo WORDS`.

    A job is no member of the terminal's group: Ctrl-C reaches it once, through the sweep, and it has the time it needs to save.

    Args:
        lock: of the sweep's folder; a job has it too until it ends.
    """

    def __init__(self, lock: int | None = None) -> None:
        self.lock = lock

    def start(self, start: Start) -> Process:
        with start.log.open("a", encoding="utf-8") as output:
            started = subprocess.Popen(
                [sys.executable, "-m", "dumbo", *start.words],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                process_group=0,
                pass_fds=() if self.lock is None else (self.lock,),
                env={**os.environ, **start.environment},
                preexec_fn=dying_with_parent(signal.SIGTERM),
            )
        return _ColdProcess(started)

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        return None


@dataclass(frozen=True)
class _ColdProcess:
    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        return self.process.poll()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)


def dying_with_parent(number: int) -> Callable[[], None] | None:
    """What a new process calls first: the kernel sends it this signal when its parent is gone. Linux only."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(PARENT_DEATH_SIGNAL, number)
        if os.getppid() != parent:  # it was gone before the kernel knew
            os._exit(128 + number)

    return ask
