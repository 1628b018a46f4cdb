"""The loop that runs a sweep's jobs: as many at once as there are slots; it starts them, watches them, and writes the ledger.

    source.next() -> Job -> a free slot -> running -> ended: tried again, or told to the source

A grid is the simple source (`Grid`); a search asks, watches, prunes and tells through the same three methods.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dumbo.outputs.places import now
from dumbo.sweep.heard import Heard
from dumbo.sweep.job import Process, Start, Starter
from dumbo.sweep.ledger import Ledger, Row
from dumbo.sweep.outcome import Asked, end_of_log, ended, may_be_tried_again
from dumbo.sweep.progress import Progress
from dumbo.sweep.slots import Slot

TICK = 0.1
"""Seconds between two looks, where nothing wakes the loop."""
LOOK = 1.0
"""Seconds between two looks at a job's numbers."""
PATIENCE = 3
"""After so many signals jobs are killed: they have had their time to save."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to run. Its row is in the ledger already.

    Args:
        number, name: of its row.
        words: of its command line, behind `python -m dumbo`.
    """

    number: int
    name: str
    words: list[str]


class Source(Protocol):
    """Where jobs come from."""

    def next(self) -> Job | None:
        """The next one; None: nothing right now. Over, when nothing runs either."""
        ...

    def watch(self, job: Job, last_rows: Sequence[dict[str, Any]]) -> bool:
        """New rows of its metrics.jsonl; True: stop it now, it is pruned."""
        ...

    def finished(self, job: Job, outcome: Row) -> None:
        """It has ended and is not tried again in this invocation."""
        ...


@dataclass
class Grid:
    """Jobs that are known from the start."""

    jobs: deque[Job]

    @classmethod
    def of(cls, jobs: Iterable[Job]) -> Grid:
        return cls(deque(jobs))

    def next(self) -> Job | None:
        return self.jobs.popleft() if self.jobs else None

    def watch(self, job: Job, last_rows: Sequence[dict[str, Any]]) -> bool:
        return False

    def finished(self, job: Job, outcome: Row) -> None:
        return None


@dataclass
class Running:
    """A job in its slot."""

    job: Job
    slot: Slot
    process: Process
    progress: Progress
    log: Path
    log_began: int
    began: float = field(default_factory=time.monotonic)
    looked: float = 0.0
    asked: Asked = None


class Display(Protocol):
    """What shows the jobs (table.py)."""

    def began(self, row: Row) -> None: ...

    def ended(self, row: Row, again: bool) -> None: ...

    def stopping(self, signal_name: str, running: int) -> None: ...

    def show(self, ledger: Ledger, running: Sequence[Running]) -> None: ...

    def close(self) -> None: ...


@dataclass
class Pool:
    """Slots, and what runs in them.

    Args:
        folder: the sweep's.
        retries: how often a job that failed or was interrupted is started again in this invocation.
        metric: the sweep's.
        heard: the signals that ask to stop.
    """

    folder: Path
    ledger: Ledger
    slots: list[Slot]
    starter: Starter
    display: Display
    retries: int
    metric: str
    heard: Heard = field(default_factory=Heard)
    _running: list[Running] = field(default_factory=list)
    _again: deque[Job] = field(default_factory=deque)
    _tries: dict[int, int] = field(default_factory=dict)
    _passed_on: int = 0

    def run(self, source: Source) -> None:
        """Runs the source's jobs to their ends; after a signal those that run save and end, and no others are started."""
        with self.heard.listening():
            while True:
                self._pass_on()
                if not self.heard.numbers:
                    self._fill(source)
                if not self._running:
                    break
                self.starter.wait(TICK)
                for one in list(self._running):
                    self._look(one, source)
                self.display.show(self.ledger, self._running)

    # ---- starting -----------------------------------------------------------------------------------------------

    def _fill(self, source: Source) -> None:
        taken = [one.slot for one in self._running]
        for slot in [slot for slot in self.slots if not any(slot is one for one in taken)]:
            job = self._again.popleft() if self._again else source.next()
            if job is None:
                return
            self._start(job, slot)

    def _start(self, job: Job, slot: Slot) -> None:
        row = self.ledger[job.number]
        folder, log = self.folder / job.name, self.folder / f"{job.name}.log"
        self._tries[job.number] = self._tries.get(job.number, 0) + 1
        row = self.ledger.change(
            job.number, state="running", attempt=row.attempt + 1, started=row.started or now(), ended=None, exit_code=None,
            error=None, device=slot.name or None,
        )  # fmt: skip
        with log.open("a", encoding="utf-8") as file:
            if row.attempt > 1:
                file.write(f"\n---- attempt {row.attempt}, {now()} ----\n")
            began = file.tell()
        process = self.starter.start(Start(words=job.words, log=log, environment=slot.environment))
        self._running.append(Running(job, slot, process, Progress(folder), log, began))
        self.display.began(row)

    # ---- watching -----------------------------------------------------------------------------------------------

    def _look(self, one: Running, source: Source) -> None:
        code = one.process.poll()
        if code is not None:
            self._end(one, code, source)
        elif time.monotonic() - one.looked > LOOK:
            one.looked = time.monotonic()
            rows = one.progress.new_rows()
            if rows and one.asked is None and source.watch(one.job, rows):
                one.asked = "prune"
                one.process.signal(signal.SIGTERM)

    def _end(self, one: Running, code: int, source: Source) -> None:
        self._running.remove(one)
        said = end_of_log(one.log, one.log_began)
        row = self.ledger[one.job.number]
        changes = ended(
            row, self.folder / one.job.name, self.metric, code=code, asked=one.asked,
            seconds=time.monotonic() - one.began, said=said,
        )  # fmt: skip
        row = self.ledger.change(one.job.number, **changes)
        again = not self.heard.numbers and may_be_tried_again(row, code) and self._tries[row.number] <= self.retries
        self.display.ended(row, again)
        if again:
            self._again.append(one.job)
        else:
            source.finished(one.job, row)

    # ---- signals ------------------------------------------------------------------------------------------------

    def _pass_on(self) -> None:
        """Every signal heard so far to every job that runs, once."""
        while self._passed_on < len(self.heard.numbers):
            number = self.heard.numbers[self._passed_on]
            self._passed_on += 1
            self.display.stopping(signal.Signals(number).name, len(self._running))
            for one in self._running:
                one.asked = one.asked or "stop"
                one.process.signal(signal.SIGKILL if self._passed_on >= PATIENCE else number)
