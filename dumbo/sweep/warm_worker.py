"""The process that jobs are forked from (warm.py): `python -m dumbo.sweep.warm_worker SOCKET`.

It imports what every run imports, and does nothing else with it: no thread is started, no CUDA context is made, no random
number is drawn. Then it forks a job for each line it is sent, and tells of their ends.

What is left out: Polars and a user's plugins start threads when they are imported; each job imports them for itself.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dumbo.leaving import owned
from dumbo.sweep.job import dying_with_parent

BEFORE_IMPORTS = {
    "GOMP_SPINCOUNT": "1000",  # as launch/single.py sets it, where torch is loaded later
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's allocator starts a thread
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # else whoever asks for CUDA while importing makes a context
}
ONLY_HERE = ("JE_ARROW_MALLOC_CONF", "PYTORCH_NVML_BASED_CUDA_CHECK")
"""Jobs do not see these."""


def import_what_runs_import() -> str | None:
    """Imports; returns why nothing may be forked from here, None: it may."""
    before = {name: os.environ.get(name) for name in ONLY_HERE}
    for name, value in BEFORE_IMPORTS.items():
        os.environ.setdefault(name, value)
    import accelerate  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers.trainer  # noqa: F401

    import dumbo.check
    import dumbo.compose
    import dumbo.train
    import dumbo.trainer.session  # noqa: F401

    for name in [name for name, value in before.items() if value is None]:
        del os.environ[name]
    gc.freeze()  # jobs need not look through what is never freed, nor copy its memory
    if torch.cuda.is_initialized() or _forks_badly():
        return "importing made a CUDA context"
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return None if len(names) == 1 else f"importing started threads ({', '.join(sorted(names)[1:])})"


def _forks_badly() -> bool:
    """Asks a forked process whether it could use CUDA: torch notes in it what its parent has done with the driver."""
    import torch

    pid = os.fork()
    if pid == 0:
        os._exit(int(getattr(torch.cuda, "_is_in_bad_fork", bool)()))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


@dataclass
class Worker:
    """Forks and reaps.

    Attributes:
        jobs: process -> the number by which the sweep calls its job.
    """

    channel: socket.socket
    jobs: dict[int, int] = field(default_factory=dict)
    _buffer: bytes = b""

    def serve(self) -> dict[str, Any]:
        """Forks jobs as they are asked for. Returns only in a forked process: what it is to do."""
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        while True:
            ready = select.select([self.channel.fileno(), woken], [], [])[0]
            if woken in ready:
                os.read(woken, 4096)
                self._reap()
            if self.channel.fileno() in ready:
                for order in self._orders():
                    if "start" not in order:
                        self._signal(order)
                    elif (job := self._fork(order)) is not None:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        os.close(woken)
                        os.close(wake)
                        self.channel.close()
                        return job

    def _orders(self) -> list[dict[str, Any]]:
        """The lines that are there; the sweep's end ends this process."""
        found = self.channel.recv(1 << 16)
        if not found:
            os._exit(0)
        *lines, self._buffer = (self._buffer + found).split(b"\n")
        orders = [json.loads(line) for line in lines]
        stopped = {order["signal"]: order["number"] for order in orders if "signal" in order}
        kept = []
        for order in orders:
            if "start" in order and order["start"] in stopped:  # it was not begun: nothing has to stop
                self.tell({"ended": order["start"], "code": -stopped[order["start"]]})
            else:
                kept.append(order)
        return kept

    def tell(self, message: Mapping[str, Any]) -> None:
        try:
            self.channel.sendall(json.dumps(dict(message)).encode() + b"\n")
        except OSError:  # the sweep is gone
            os._exit(0)

    def _fork(self, order: dict[str, Any]) -> dict[str, Any] | None:
        with_parent = dying_with_parent(signal.SIGTERM)
        try:
            pid = os.fork()
        except OSError as error:  # no memory, too many processes: this job fails, the others go on
            with Path(order["log"]).open("a", encoding="utf-8") as log:
                log.write(f"The job could not be started: {error}\n")
            self.tell({"ended": order["start"], "code": 1})
            return None
        if pid == 0:
            os.setpgid(0, 0)
            if with_parent is not None:
                with_parent()
            return order
        self.jobs[pid] = order["start"]
        self.tell({"started": order["start"], "pid": pid})
        return None

    def _reap(self) -> None:
        while self.jobs:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            number = self.jobs.pop(pid)
            self.tell({"ended": number, "code": os.waitstatus_to_exitcode(status)})

    def _signal(self, order: Mapping[str, Any]) -> None:
        """A process that was not reaped yet has its number still: no other can get the signal."""
        for pid, number in self.jobs.items():
            if number == order["signal"]:
                os.kill(pid, order["number"])


def run(job: Mapping[str, Any]) -> int:
    """The job, in the forked process, as `python -m dumbo WORDS` would run it. Returns the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(log)
    os.environ.update(job["environment"])
    sys.argv = [sys.argv[0], *job["words"]]
    from dumbo.cli import main

    try:
        return main(job["words"], owns=True)
    finally:
        gc.unfreeze()  # at the end of the process everything is freed, which nanobind's types look at


def start(channel: int) -> int:
    """Serves; in a forked process runs its job."""
    owned()
    worker = Worker(socket.socket(fileno=channel))
    try:
        refused = import_what_runs_import()
    except Exception as error:  # jobs that are started the other way say it in their logs
        refused = f"{type(error).__name__}: {error}"
    if refused is not None:
        worker.tell({"cold": refused})
        return 0
    worker.tell({"ready": True})
    return run(worker.serve())


if __name__ == "__main__":
    sys.exit(start(int(sys.argv[1])))
