"""The jobs of a sweep in SLURM: submitted, and watched until they are over. Whoever watches may go, and come back.

    source.next() -> Job -> Task -> arrays, one for each number of nodes -> the ledger names their jobs -> watched -> told to the source

The same protocol as the pool on this machine (`sweep/pool.py`): a grid hands out all its jobs at once, a search some at a time.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dumbo.errors import RunFailed, Stopped, UserError
from dumbo.outputs.console import Console
from dumbo.outputs.places import short
from dumbo.slurm import queue
from dumbo.slurm.submit import checked_parameters, submit
from dumbo.slurm.task import Task
from dumbo.slurm.watch import DEVICE, LIVE, LOCAL, in_slurm, job_of, note_file, refresh, submitted
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


@dataclass
class SlurmPool:
    """What a launcher of submitit runs a sweep's jobs with.

    Args:
        folder, ledger, console: the sweep's.
        metric: the sweep's.
        retries: how often a job that fails is put back by itself.
        detach: submit and return.
        parameters: of hydra.launcher.
        cluster: "slurm", or "local": processes of submitit's on this machine.
        nodes_of: how many nodes a job wants.
    """

    folder: Path
    ledger: Ledger
    console: Console
    metric: str
    retries: int
    detach: bool
    parameters: Mapping[str, Any]
    cluster: str
    nodes_of: Callable[[Job], int]
    _jobs: dict[int, Job] = field(default_factory=dict)

    def run(self, source: Source) -> None:
        """Runs the source's jobs to their ends; with `detach`, as far as it hands them out, into the queue.

        Raises:
            Stopped: a signal ended the watching; the jobs go on.
            UserError: a parameter is wrong, or SLURM does not take a job.
            RunFailed: SLURM has not answered for a long time.
        """
        checked = checked_parameters(self.parameters, self.cluster)
        with stoppable(self.console, self.folder):
            while new := list(iter(source.next, None)):
                self._submit(new, checked)
                if self.detach:
                    continue
                watch(self.folder, self.ledger, self.metric, Told(self.console), source=source, jobs=self._jobs)

    def _submit(self, jobs: list[Job], checked: Mapping[str, Any]) -> None:
        """Those that are not in the queue already."""
        self._jobs.update((job.number, job) for job in jobs)
        known = {row.number for row in submitted(self.ledger)}
        wanted = {job.number: self.nodes_of(job) for job in jobs if job.number not in known}
        for nodes in sorted(set(wanted.values())):
            chosen = [job for job in jobs if wanted.get(job.number) == nodes]
            numbers = submit(
                [self._task(job, checked) for job in chosen],
                nodes,
                checked,
                Path(checked["submitit_folder"]),
                self.cluster,
            )
            device = DEVICE if self.cluster == "slurm" else LOCAL
            self.ledger.put(
                replace(
                    self.ledger[job.number],
                    state="waiting",
                    device=f"{device}{number}",
                    ended=None,
                    exit_code=None,
                    error=None,
                )
                for job, number in zip(chosen, numbers, strict=True)
            )
            places = f" on {nodes} nodes each" if nodes > 1 else ""
            first, last = numbers[0], numbers[-1]
            self.console.row("submitted", f"{len(numbers)}{places}: {first if first == last else f'{first} to {last}'}")

    def _task(self, job: Job, checked: Mapping[str, Any]) -> Task:
        return Task(
            words=tuple(job.words),
            run_dir=str(self.folder / job.name),
            log=str(self.folder / f"{job.name}.log"),
            note=str(note_file(self.folder, job.name)),
            time_limit=60.0 * checked["timeout_min"],
            warning=float(checked["signal_delay_s"]),
            max_timeouts=checked["max_num_timeout"],
            retries=self.retries,
        )


class Told:
    """Says what becomes of the jobs, a line for each change."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, before: Row, row: Row) -> None:
        if (before.state, before.attempt) == (row.state, row.attempt) and row.state in LIVE:
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


def watch(
    folder: Path,
    ledger: Ledger,
    metric: str,
    tell: Callable[[Row, Row], None],
    *,
    source: Source | None = None,
    jobs: Mapping[int, Job] | None = None,
) -> None:
    """Keeps the ledger up to date until every job that was submitted is over.

    Args:
        folder, metric: the sweep's.
        tell: called with each row that changed, as it was and as it is.
        source: told of ends, and asked whether a job is to be pruned.
        jobs: the source's, by their numbers.

    Raises:
        RunFailed: SLURM has not answered for a long time.
    """
    looked, answered = -LOOKS_AT_SLURM, time.monotonic()
    stamps: dict[int, int] = {}
    pruned = _Pruning(folder, source, jobs or {})
    while rows := submitted(ledger):
        before, stamps = stamps, {row.number: _stamp(note_file(folder, row.name)) for row in rows}
        if stamps != before or time.monotonic() - looked >= LOOKS_AT_SLURM:
            looked = time.monotonic()
            try:
                changed = refresh(folder, ledger, metric, pruned=pruned.numbers)
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
                if source is not None and row.state not in LIVE and jobs and row.number in jobs:
                    source.finished(jobs[row.number], row)
        pruned.look(ledger)
        if submitted(ledger):
            time.sleep(max(LOOK, len(rows) / JOBS_A_SECOND))


class _Pruning:
    """Shows a search the numbers of the jobs that run, and ends those that it does not want any more."""

    def __init__(self, folder: Path, source: Source | None, jobs: Mapping[int, Job]) -> None:
        self.folder, self.source, self.jobs = folder, source, jobs
        self.numbers: set[int] = set()
        self._progress: dict[int, Progress] = {}

    def look(self, ledger: Ledger) -> None:
        if self.source is None:
            return
        for row in ledger.in_state("running"):
            if row.number in self.numbers or row.number not in self.jobs:
                continue
            progress = self._progress.setdefault(row.number, Progress(self.folder / row.name))
            rows = progress.new_rows()
            if rows and in_slurm(row) and self.source.watch(self.jobs[row.number], rows):
                self.numbers.add(row.number)
                queue.cancel([str(job_of(row))])


def cancel_jobs(ledger: Ledger) -> list[Row]:
    """Ends all jobs that were submitted, those that run after they saved; returns their rows.

    Raises:
        UserError: SLURM would not, or they are processes of submitit's.
    """
    rows = submitted(ledger)
    if here := [row for row in rows if not in_slurm(row)]:
        raise UserError(
            f"sweep cancel: {here[0].name} runs in a process of submitit's, not in SLURM: {here[0].device}."
        )
    if (refused := queue.cancel([str(job_of(row)) for row in rows])) is not None:
        raise UserError(f"sweep cancel: SLURM says {refused}")
    return rows


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
