"""Starts the ranks of a run on this machine, watches them, passes signals on, and leaves nothing behind.

The ranks are started by torch's elastic launcher (what torchrun is), in a thread of this process, so that the main
thread is free for signals. Each rank is a process of `dumbo.launch.rank` in a session of its own; the system kills it
when this process dies. Ports: the launcher's store takes a free one, and hands it on.

    SIGINT, SIGTERM, SIGUSR1, SIGUSR2 here -> the same to every rank: they finish the step, save and end
    a rank fails -> the others have GRACE seconds, then they are killed
    no rank is ready after `start_timeout` -> all are killed

Source: https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from dumbo.errors import MemoryFull, RunFailed, Stopped
from dumbo.launch.addresses import Meeting
from dumbo.launch.endings import Ending, cause, endings
from dumbo.launch.environment import changed_environment, for_ranks
from dumbo.launch.frozen import Frozen
from dumbo.launch.processes import Processes
from dumbo.trainer.signals import EXIT_CODES, WARNINGS

GRACE, GRACE_STOPPED = 5.0, 12.0
"""Seconds the other ranks have to end by themselves when one has failed; when one has stopped (trackers have last words)."""
LAST_WORDS = 2.0
"""Seconds the launcher has to end by itself when all ranks of this machine are gone."""
LOOKS = 0.1
"""Seconds between looks at the ranks."""
FORWARDED = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")


@dataclass
class Ranks:
    """The ranks of one node.

    Args:
        folder: of this node: pids, endings, the launcher's own files. Gone at the end.
        here: ranks on this machine.
        nodes: machines.
        meeting: where several machines meet; None with one.
        start_timeout: seconds until all must be ready.
        cuda: one GPU a rank, else the CPU.
    """

    folder: Path
    here: int
    nodes: int
    meeting: Meeting | None
    start_timeout: float
    cuda: bool
    _exit_codes: dict[int, int] = field(default_factory=dict)
    _launcher: Exception | None = None
    _was_ready: bool = False
    _noticed: bool = False
    _silent: list[int] = field(default_factory=list)
    _heard: list[int] = field(default_factory=list)
    _told: set[tuple[int, int]] = field(default_factory=set)

    @property
    def _processes(self) -> Processes:
        return Processes(self.folder)

    def run(self, frozen: Frozen) -> Ending:
        """Runs them to their end.

        Args:
            frozen: the config.

        Returns:
            rank 0's ending, when every rank is done; with several machines, when it was on this one.

        Raises:
            Stopped, UserError, ProofFailed, RunFailed (MemoryFull among them): what ended a rank first.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, mode=0o700)
        thread = threading.Thread(target=self._launch, daemon=True, name="ranks")
        with changed_environment(self._environment(frozen)), self._forwarding():
            thread.start()
            late = self._watch(thread)
        if not self._noticed:
            self._silent = self._gone_silent()  # they ended between two looks
        found = endings(self.folder)
        why = cause(found, {rank: self._exit_codes.get(rank, 1) for rank in self._silent})
        shutil.rmtree(self.folder, ignore_errors=True)
        if late is not None and not isinstance(why, RunFailed | ValueError):
            raise late
        if self._heard and isinstance(why, MemoryFull):  # they are not started again for somebody who wants them to end
            name = signal.Signals(self._heard[-1]).name
            raise Stopped(name, EXIT_CODES[name])
        if why is not None:
            raise why
        if self._launcher is not None:
            raise RunFailed(self._launcher_failed(self._launcher)) from self._launcher
        return found.get(0, Ending("done"))

    # ---- starting ---------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        """In the thread: torch's launcher, until all ranks have ended."""
        from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
        config = LaunchConfig(
            min_nodes=self.nodes,
            max_nodes=self.nodes,
            nproc_per_node=self.here,
            run_id="dumbo",
            rdzv_backend="c10d",
            rdzv_endpoint=self.meeting.endpoint if self.meeting else "localhost:0",
            rdzv_configs={"timeout": self.start_timeout, "join_timeout": self.start_timeout, **self._who_hosts()},
            local_addr=self.meeting.address if self.meeting else None,
            max_restarts=0,
            monitor_interval=LOOKS,
            logs_specs=DefaultLogsSpecs(log_dir=str(self.folder / "torchrun")),
        )
        words = ["-m", "dumbo.launch.rank"]
        # SLURM may tell every process of a job at once: a rank that cannot hear yet gets it when it can (signals.py).
        signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)
        try:
            elastic_launch(config, sys.executable)(*words)
        except ChildFailedError as error:
            self._exit_codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        except Exception as error:  # `run` raises it, in the main thread
            self._launcher = error

    def _who_hosts(self) -> dict[str, Any]:
        return {"is_host": str(self.meeting.hosts)} if self.meeting else {}

    def _launcher_failed(self, error: Exception) -> str:
        said = f"{type(error).__name__}: {error}"
        if self.meeting is None:
            return f"The ranks could not be started: {said}"
        if self._was_ready:
            return f"The other machines were lost: there is no answer from {self.meeting.endpoint} any more ({said})."
        return (
            f"The {self.nodes} machines did not meet at {self.meeting.endpoint} within {self.start_timeout:g} s ({said}).\n"
            f"  Start the same command on {self.nodes} machines; launch.rdzv_endpoint must be reachable from all of them."
        )

    def _environment(self, frozen: Frozen) -> dict[str, str | None]:
        own = {"DUMBO_LAUNCH_FOLDER": str(self.folder), **frozen.to_environment()}
        interface = self.meeting.interface if self.meeting else ""
        return {**for_ranks(self.here, cuda=self.cuda, interface=interface), **own}

    # ---- watching ---------------------------------------------------------------------------------------------

    def _watch(self, thread: threading.Thread) -> RunFailed | None:
        """Waits for the thread; kills what does not end in time. Returns why, when the start took too long."""
        began = time.monotonic()
        failed_at: float | None = None
        late: RunFailed | None = None
        while thread.is_alive():
            thread.join(LOOKS)
            self._pass_on()
            now = time.monotonic()
            if failed_at is None and self._somebody_failed():
                failed_at, self._noticed = now, True
                self._silent = self._gone_silent()  # by themselves, and not because of us
            grace = self._grace()
            if failed_at is not None and now - failed_at > grace:
                if not self._processes.living() and now - failed_at > grace + LAST_WORDS:
                    return late  # torch's launcher waits for a machine that does not answer any more
                self._processes.kill()
            if not self._ready() and late is None and failed_at is None and now - began > self.start_timeout:
                late = RunFailed(
                    f"The ranks were not ready after {self.start_timeout:g} s ({len(self._processes.pids())} of {self.here} on this "
                    f"machine had started, {self._counted_ready()} were ready).\n"
                    "  What they said is in rank-*.log; write launch.start_timeout=SECONDS where it takes longer here."
                )
                failed_at, self._noticed = now - GRACE_STOPPED, True
        return late

    def _ready(self) -> bool:
        self._was_ready = self._was_ready or self._counted_ready() >= self.here
        return self._was_ready

    def _counted_ready(self) -> int:
        return len(list(self.folder.glob("ready-*")))

    def _somebody_failed(self) -> bool:
        """A rank wrote that it failed, or is gone without a word."""
        return any(ending.kind != "done" for ending in endings(self.folder).values()) or bool(self._gone_silent())

    def _gone_silent(self) -> list[int]:
        gone = self._processes.gone()
        found = endings(self.folder)  # after looking who is gone: a rank writes first, then goes
        return [rank for rank in gone if rank not in found]

    def _grace(self) -> float:
        kinds = {ending.kind for ending in endings(self.folder).values()}
        return GRACE_STOPPED if kinds <= {"stopped", "done"} and not self._silent and kinds else GRACE

    # ---- signals ----------------------------------------------------------------------------------------------

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def forward(number: int, frame: FrameType | None) -> None:
            self._heard.append(number)

        kept = signal.pthread_sigmask(signal.SIG_BLOCK, ())  # as it is
        before = {getattr(signal, name): signal.signal(getattr(signal, name), forward) for name in FORWARDED}
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, before)
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, kept)
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _pass_on(self) -> None:
        """Every signal heard so far to every rank that listens by now, once."""
        for place, number in enumerate(self._heard):
            for pid in self._processes.pids().values():
                if (place, pid) not in self._told:
                    self._told.add((place, pid))
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, number)
