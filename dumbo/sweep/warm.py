"""Jobs without the seconds of importing: forked from one process that has imported what every run imports.

    sweep  --socket-->  warm_worker.py (imports only)  --fork-->  job, job, …

A fork is safe as long as the process has nothing but one thread and no CUDA context; the worker looks, and says "cold" where
that does not hold: jobs then are started as `python -m dumbo`, which is slower and nothing else. Each job is a process of its
own as before: its patches, its signals, its memory. They die with the worker, and the worker with the sweep.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dumbo.launch.processes import alive
from dumbo.sweep.job import Cold, Process, Start, dying_with_parent

LOST = -signal.SIGTERM
"""The exit code of a job whose worker died: the kernel sent it SIGTERM."""
SECONDS_TO_APPEAR = 2.0
"""A job that a dying worker did not tell of has been ended by the kernel after so long."""


class Warm:
    """Starts jobs through a worker.

    Args:
        lock: of the sweep's folder; the worker and the jobs have it too until they end.
        environment: variables that are read when torch is loaded (OMP_NUM_THREADS): the same for all jobs.
        tell: told when jobs have to be started the slow way, and why.
        forks: False: the slow way is asked for (sweep.warm=false).
    """

    def __init__(
        self,
        lock: int | None,
        environment: Mapping[str, str],
        tell: Callable[[str], None] = lambda text: None,
        forks: bool = True,
    ) -> None:
        self._cold, self._tell = Cold(lock), tell
        self._jobs: dict[int, _WarmProcess] = {}
        self._buffer = b""
        self._ready = False
        self.why_cold: str | None = None if forks else "sweep.warm=false"
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._worker = worker_process(theirs.fileno(), lock, environment) if forks else None

    def start(self, start: Start) -> Process:
        if self.why_cold is not None:
            return self._cold.start(start)
        job = _WarmProcess(self, len(self._jobs), start)
        self._jobs[job.number] = job
        self.send({"start": job.number, "words": start.words, "log": str(start.log), "environment": start.environment})
        return job

    def send(self, message: Mapping[str, Any]) -> None:
        try:
            self._socket.sendall(json.dumps(dict(message)).encode() + b"\n")
        except OSError:
            self._lost("the process that starts them ended")

    def wait(self, seconds: float) -> None:
        if self.why_cold is not None:
            time.sleep(seconds)
        elif select.select([self._socket], [], [], seconds)[0]:
            self.listen()

    def listen(self) -> None:
        """Takes up what the worker has said."""
        while self.why_cold is None and select.select([self._socket], [], [], 0)[0]:
            try:
                found = self._socket.recv(1 << 16)
            except OSError:
                found = b""
            if not found:
                self._lost("the process that starts them ended")
                return
            *lines, self._buffer = (self._buffer + found).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))

    def _hear(self, message: Mapping[str, Any]) -> None:
        if "cold" in message:
            self._lost(str(message["cold"]))
        elif "ready" in message:
            self._ready = True
        elif "started" in message:
            self._jobs[message["started"]].pid = message["pid"]
        else:
            self._jobs[message["ended"]].code = message["code"]

    def _lost(self, why: str) -> None:
        """From here on Python is started for each job, also for those that the worker never began."""
        if self.why_cold is not None:
            return
        self.why_cold = why
        self._tell(f"each job imports for itself: {why}")
        for job in self._jobs.values():
            if job.code is None and not self._ready:  # it has forked nothing
                job.instead = self._cold.start(job.start)

    def close(self) -> None:
        """Ends the worker."""
        self._socket.close()
        if self._worker is None:
            return
        try:
            self._worker.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.wait()


def worker_process(channel: int, lock: int | None, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts the worker, which ends when `channel` does, or this process."""
    return subprocess.Popen(
        [sys.executable, "-m", "dumbo.sweep.warm_worker", str(channel)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=(channel, *(() if lock is None else (lock,))),
        env={**os.environ, **environment},
        preexec_fn=dying_with_parent(signal.SIGKILL),
    )


@dataclass
class _WarmProcess:
    """A job of the worker's.

    Attributes:
        number: by which sweep and worker call it.
        pid: once it is known.
        code: once it has ended.
        instead: the process that was started the slow way.
    """

    warm: Warm
    number: int
    start: Start
    pid: int | None = None
    code: int | None = None
    instead: Process | None = None
    _lost_since: float | None = None

    def poll(self) -> int | None:
        if self.code is None and self.instead is None:
            self.warm.listen()
        if self.instead is not None:
            return self.instead.poll()
        if self.code is None and self.warm.why_cold is not None:
            self._lost_since = self._lost_since or time.monotonic()
            told = self.pid is not None or time.monotonic() - self._lost_since < SECONDS_TO_APPEAR
            if not (alive(self.pid) if self.pid is not None else told):
                self.code = LOST
        return self.code

    def signal(self, number: int) -> None:
        if self.instead is not None:
            self.instead.signal(number)
        elif self.poll() is None:
            if self.warm.why_cold is None:
                self.warm.send({"signal": self.number, "number": number})
            elif self.pid is not None:
                os.kill(self.pid, number)
