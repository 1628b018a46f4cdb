"""The jobs of a sweep in SLURM: submitted, and watched until they are over. Whoever watches may go, and come back.

    source.next() -> Job -> Task -> arrays, one for each number of nodes -> the ledger names their jobs -> watched -> told to the source

The same protocol as the pool on this machine (`sweep/pool.py`): a grid hands out all its jobs at once, a search some at a time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dumbo.errors import UserError
from dumbo.hydra_node import key_of
from dumbo.outputs.console import Console
from dumbo.slurm import queue
from dumbo.slurm.note import Note
from dumbo.slurm.rows import DEVICE, LOCAL, in_slurm, job_of, note_file, runs_here, submitted
from dumbo.slurm.submit import arrays, checked_parameters, submit
from dumbo.slurm.task import Task
from dumbo.slurm.watch import Told, Watched, stoppable, watch
from dumbo.sweep.ledger import Ledger, Row
from dumbo.sweep.options import SweepOptions
from dumbo.sweep.outcome import may_be_tried_again
from dumbo.sweep.pool import Grid, Job, Source

LOCAL_AT_ONCE = 4
"""Trials of a search that submitit's local executor runs at once: it knows no limit."""


@dataclass
class SlurmPool:
    """What a launcher of submitit runs a sweep's jobs with.

    Args:
        folder, ledger, console: the sweep's.
        metric: the sweep's.
        retries: how often a job that fails is put back by itself.
        detach: submit and return.
        parameters: of hydra.launcher, checked.
        cluster: "slurm", or "local": processes of submitit's on this machine.
        nodes: launch.num_nodes, where a job's own words do not say another.
    """

    folder: Path
    ledger: Ledger
    console: Console
    metric: str
    retries: int
    detach: bool
    parameters: Mapping[str, Any]
    cluster: str
    nodes: int
    _jobs: dict[int, Job] = field(default_factory=dict)
    _again: list[Job] = field(default_factory=list)
    _tries: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, cfg: DictConfig, launcher: str, options: SweepOptions, folder: Path, ledger: Ledger, console: Console
    ) -> SlurmPool:
        """For a sweep.

        Args:
            cfg: of the words that are not swept, `hydra` in it.
            launcher: submitit_slurm or submitit_local.

        Raises:
            UserError: a parameter is wrong.
        """
        raw = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
        assert isinstance(raw, dict)
        cluster = launcher.removeprefix("submitit_")
        parameters = checked_parameters({str(key): value for key, value in raw.items() if key != "_target_"}, cluster)
        nodes = getattr(cfg.launch, "num_nodes", 1)
        return cls(folder, ledger, console, options.metric, options.retries, options.detach, parameters, cluster, nodes)

    @property
    def at_once(self) -> int:
        """Jobs that may run at once; of a search, the trials that it chooses without knowing of one another's ends."""
        return int(self.parameters.get("array_parallelism", LOCAL_AT_ONCE))

    def run(self, source: Source) -> None:
        """Runs the source's jobs to their ends; with `detach`, as far as it hands them out, into the queue.

        Raises:
            Stopped: a signal ended the watching; the jobs go on.
            UserError: SLURM does not take a job.
            RunFailed: SLURM has not answered for a long time.
        """
        grid = isinstance(source, Grid)
        if self.detach and not grid:
            raise UserError(
                "sweep.detach=true: a search chooses a trial from those that have ended, and must watch them."
            )
        watching = Watched(source, self._jobs, self._is_tried_again)
        with stoppable(self.console, self.folder):
            while (new := self._next(source, grid)) or submitted(self.ledger):
                self._submit(new)
                if self.detach:
                    return
                watch(self.folder, self.ledger, self.metric, Told(self.console), watching, whole=grid)

    def _next(self, source: Source, grid: bool) -> list[Job]:
        """Those to be submitted now: all of a grid; of a search as many as may run at once."""
        new, self._again = self._again, []
        room = self.at_once - len(submitted(self.ledger))
        while (grid or len(new) < room) and (job := source.next()) is not None:
            new.append(job)
        return new

    def _is_tried_again(self, row: Row) -> bool:
        """Whether a job that ended is submitted once more: one that could not put itself back into the queue."""
        note = Note.read(note_file(self.folder, row.name))
        given_up = row.state == "cancelled" or bool(note.said) or not may_be_tried_again(row, row.exit_code)
        if given_up or note.failures + self._tries.get(row.number, 0) >= self.retries:
            return False
        self._tries[row.number] = self._tries.get(row.number, 0) + 1
        self._again.append(self._jobs[row.number])
        return True

    def _submit(self, jobs: list[Job]) -> None:
        """Those that are not in the queue already."""
        self._jobs.update((job.number, job) for job in jobs)
        known = {row.number for row in submitted(self.ledger)}
        wanted = {job.number: self._nodes_of(job) for job in jobs if job.number not in known}
        for nodes in sorted(set(wanted.values())):
            for chosen in arrays([job for job in jobs if wanted.get(job.number) == nodes]):
                self._submit_array(chosen, nodes)

    def _submit_array(self, jobs: Sequence[Job], nodes: int) -> None:
        """Into the queue and the ledger: before the next array, which SLURM may refuse (a limit of jobs)."""
        numbers = submit(
            [self._task(job) for job in jobs],
            nodes,
            self.parameters,
            Path(self.parameters["submitit_folder"]),
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
            for job, number in zip(jobs, numbers, strict=True)
        )
        places = f" on {nodes} nodes each" if nodes > 1 else ""
        first, last = numbers[0], numbers[-1]
        self.console.row("submitted", f"{len(numbers)}{places}: {first if first == last else f'{first} to {last}'}")

    def _nodes_of(self, job: Job) -> int:
        typed = [word.partition("=")[2] for word in job.words if key_of(word) == "launch.num_nodes"]
        nodes, asked = int(typed[-1]) if typed and typed[-1].isdigit() else self.nodes, self.parameters["nodes"]
        if asked not in (1, nodes):
            raise UserError(
                f"hydra.launcher.nodes={asked}, and the job has launch.num_nodes={nodes}.\n"
                f"  Write launch=ddp launch.num_nodes={asked}, and leave hydra.launcher.nodes out."
            )
        return nodes

    def _task(self, job: Job) -> Task:
        return Task(
            words=tuple(job.words),
            run_dir=str(self.folder / job.name),
            log=str(self.folder / f"{job.name}.log"),
            note=str(note_file(self.folder, job.name)),
            time_limit=60.0 * self.parameters["timeout_min"],
            warning=float(self.parameters["signal_delay_s"]),
            max_timeouts=self.parameters["max_num_timeout"],
            retries=self.retries,
        )


def cancel_jobs(ledger: Ledger) -> list[Row]:
    """Ends all jobs that were submitted, those that run after they saved; returns their rows.

    Raises:
        UserError: SLURM would not.
    """
    rows = submitted(ledger)
    for row in rows:
        if not in_slurm(row) and runs_here(pid := int(str(job_of(row)))):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    if (refused := queue.cancel([str(job_of(row)) for row in rows if in_slurm(row)])) is not None:
        raise UserError(f"sweep cancel: SLURM says {refused}")
    return rows
