"""The jobs of a sweep in SLURM: submitted, and watched until they are over. Whoever watches may go, and come back.

    source.next() -> Job -> Task -> arrays, one for each number of nodes -> the ledger names their jobs -> watched -> told to the source

The same protocol as the pool on this machine (`sweep/pool.py`): a grid hands out all its jobs at once, a search some at a time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dumbo.errors import UserError
from dumbo.outputs.console import Console
from dumbo.slurm import queue
from dumbo.slurm.note import Note
from dumbo.slurm.rows import DEVICE, LOCAL, in_slurm, job_of, note_file, submitted
from dumbo.slurm.submit import checked_parameters, submit
from dumbo.slurm.task import Task
from dumbo.slurm.watch import Told, Watched, stoppable, watch
from dumbo.sweep.ledger import Ledger, Row
from dumbo.sweep.outcome import may_be_tried_again
from dumbo.sweep.pool import Job, Source


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
    _again: list[Job] = field(default_factory=list)
    _tries: dict[int, int] = field(default_factory=dict)

    def run(self, source: Source) -> None:
        """Runs the source's jobs to their ends; with `detach`, as far as it hands them out, into the queue.

        Raises:
            Stopped: a signal ended the watching; the jobs go on.
            UserError: a parameter is wrong, or SLURM does not take a job.
            RunFailed: SLURM has not answered for a long time.
        """
        checked = checked_parameters(self.parameters, self.cluster)
        watching = Watched(source, self._jobs, self._is_tried_again)
        with stoppable(self.console, self.folder):
            while new := [*self._again, *iter(source.next, None)]:
                self._again = []
                self._submit(new, checked)
                if not self.detach:
                    watch(self.folder, self.ledger, self.metric, Told(self.console), watching)

    def _is_tried_again(self, row: Row) -> bool:
        """Whether a job that ended is submitted once more: one that could not put itself back into the queue."""
        tries = Note.read(note_file(self.folder, row.name)).failures + self._tries.get(row.number, 0)
        if row.state == "cancelled" or not may_be_tried_again(row, row.exit_code) or tries >= self.retries:
            return False
        self._tries[row.number] = self._tries.get(row.number, 0) + 1
        self._again.append(self._jobs[row.number])
        return True

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


def cancel_jobs(ledger: Ledger) -> list[Row]:
    """Ends all jobs that were submitted, those that run after they saved; returns their rows.

    Raises:
        UserError: SLURM would not.
    """
    rows = submitted(ledger)
    for row in rows:
        if not in_slurm(row):
            with suppress(ProcessLookupError):
                os.kill(int(str(job_of(row))), signal.SIGTERM)
    if (refused := queue.cancel([str(job_of(row)) for row in rows if in_slurm(row)])) is not None:
        raise UserError(f"sweep cancel: SLURM says {refused}")
    return rows
