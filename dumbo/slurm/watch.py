"""Watches jobs in SLURM until they are over: their notes each second, SLURM's queue now and then. Who watches may be killed."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dumbo.errors import RunFailed, Stopped
from dumbo.outputs.console import Console
from dumbo.outputs.places import short
from dumbo.slurm import queue
from dumbo.slurm.rows import LIVE, in_slurm, job_of, note_file, refresh, submitted
from dumbo.sweep.ledger import Ledger, Row
from dumbo.sweep.pool import Job, Source
from dumbo.sweep.progress import Progress
from dumbo.trainer.signals import interruptible

LOOK, LOOKS_AT_SLURM = 1.0, 10.0
"""Seconds between looks at the jobs' notes, and at SLURM's queue at the latest."""
JOBS_A_SECOND = 100
"""Notes of so many jobs are looked at in a second."""
SILENT = 600.0
"""Seconds that SLURM may not answer before watching is given up."""


class Told:
    """Says what becomes of the jobs, a line for each change."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, before: Row, row: Row) -> None:
        first = max(1, before.attempt)  # SLURM runs it; a moment later it says so itself
        if before.state == row.state and row.attempt <= first:
            return
        again = f" (attempt {row.attempt})" if row.attempt > 1 else ""
        if row.state == "running":
            self.console.row("", f"{row.name} is running, {row.device}{again} …")
        elif row.state == "waiting":
            self.console.row("", f"{row.name} is back in the queue, saved; {row.device}")
        elif row.state == "done":
            self.console.row("", f"{row.name}  done{again}")
        else:
            said = " ".join((row.error or "").split("\n"))[:300]
            self.console.row("", f"{row.name}  {row.state}{again}: {said}")


class Watched:
    """Where the jobs come from, told of their ends and shown the numbers of those that run; it may prune them."""

    def __init__(self, source: Source, jobs: Mapping[int, Job], tried_again: Callable[[Row], bool]) -> None:
        self.source, self.jobs, self.tried_again = source, jobs, tried_again
        self.pruned: set[int] = set()
        self._progress: dict[int, Progress] = {}

    def ended(self, row: Row) -> None:
        if row.number in self.jobs and not self.tried_again(row):
            self.source.finished(self.jobs[row.number], row)

    def look(self, folder: Path, rows: Sequence[Row]) -> None:
        """At the jobs that run and are not given up yet."""
        for row in rows:
            if row.state != "running" or row.number in self.pruned or row.number not in self.jobs:
                continue
            new = self._progress.setdefault(row.number, Progress(folder / row.name)).new_rows()
            if new and in_slurm(row) and self.source.watch(self.jobs[row.number], new):
                self.pruned.add(row.number)
                queue.cancel([str(job_of(row))])


def watch(
    folder: Path,
    ledger: Ledger,
    metric: str,
    tell: Callable[[Row, Row], None],
    source: Watched | None = None,
    *,
    whole: bool = True,
) -> None:
    """Keeps the ledger up to date until every job that was submitted is over.

    Args:
        folder, metric: the sweep's.
        tell: called with each row that changed, as it was and as it is.
        source: told of ends.
        whole: else until one of them is over.

    Raises:
        RunFailed: SLURM has not answered for a long time.
    """
    looked, answered = -LOOKS_AT_SLURM, time.monotonic()
    stamps: dict[int, int] = {}
    while rows := submitted(ledger):
        before, stamps = stamps, {row.number: _stamp(note_file(folder, row.name)) for row in rows}
        if stamps != before or time.monotonic() - looked >= LOOKS_AT_SLURM:
            looked = time.monotonic()
            try:
                changed = refresh(folder, ledger, metric, pruned=source.pruned if source is not None else ())
                answered = time.monotonic()
            except (OSError, subprocess.SubprocessError) as error:
                if time.monotonic() - answered > SILENT:
                    raise RunFailed(
                        f"SLURM has not answered for {SILENT / 60:g} minutes: {error}\n"
                        f"  The jobs go on. Watch them again: dumbo sweep wait {short(folder)}"
                    ) from error
                changed = []
            for earlier, row in changed:
                tell(earlier, row)
                if source is not None and row.state not in LIVE:
                    source.ended(row)
            if not whole and any(row.state not in LIVE for _, row in changed):
                return
        if source is not None:
            source.look(folder, rows)
        if submitted(ledger):
            time.sleep(max(LOOK, len(rows) / JOBS_A_SECOND))


@contextmanager
def stoppable(console: Console, folder: Path) -> Iterator[None]:
    """A signal ends the watching, and not the jobs."""
    try:
        with interruptible():
            yield
    except Stopped as stop:
        console.row(
            "stopped",
            f"{stop.signal_name}: nobody watches any more; the jobs go on.\n"
            f"Watch them: dumbo sweep wait {short(folder)}   End them: dumbo sweep cancel {short(folder)}",
        )
        raise Stopped(stop.signal_name, stop.exit_code or 128 + signal.Signals[stop.signal_name]) from None


def _stamp(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
