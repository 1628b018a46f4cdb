"""How a sweep's jobs run: each a process of its own, one after another or several at once, on this machine or in SLURM.

    sweep.py (what the sweep is) -> run_jobs (Hydra's launcher), or run (search.py) -> finish.py (how it went)

A job that fails does not end the sweep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from dumbo.errors import RunFailed, Stopped, UserError
from dumbo.hydra_node import key_of
from dumbo.outputs.secrets import hidden_keys
from dumbo.refuse import SWEEP_WANTED
from dumbo.sweep.heard import Heard, not_deaf
from dumbo.sweep.job_words import in_this_process, job_words
from dumbo.sweep.launchers import OURS, SUBMITTING
from dumbo.sweep.ledger import ENDED, Row
from dumbo.sweep.pool import Grid, Job, Pool, Source
from dumbo.sweep.rows import assigned
from dumbo.sweep.sweep import Sweep
from dumbo.sweep.sweeper import SEARCH, faults_before
from dumbo.sweep.table import SweepTable
from dumbo.sweep.told import go_on, say_begin, say_faults, say_stopped
from dumbo.sweep.typed import own_words
from dumbo.sweep.warm import Warm
from dumbo.trainer.signals import EXIT_CODES


@dataclass
class Runner:
    """What runs a sweep's jobs, in one invocation.

    Attributes:
        sweep: whose jobs they are.
        asked: numbers of the jobs that this invocation is about.
    """

    sweep: Sweep
    asked: list[int] = field(default_factory=list)
    _heard: Heard = field(default_factory=Heard)
    _fixed: list[str] = field(default_factory=list)
    _pool: Pool | None = None

    _current: ClassVar[Runner | None] = None

    @classmethod
    def of(cls, sweep: Sweep) -> Runner:
        """The one that Hydra's launchers and sweepers find from here on."""
        cls._current = cls(sweep)
        return cls._current

    @classmethod
    def current(cls) -> Runner:
        """The one of this process.

        Raises:
            UserError: no sweep was begun.
        """
        if cls._current is None:
            raise UserError(f"hydra.mode is MULTIRUN: {SWEEP_WANTED}")
        return cls._current

    def __enter__(self) -> Runner:
        not_deaf()
        return self

    def __exit__(self, *raised: object) -> None:
        """Ends what starts the jobs."""
        if self._pool is not None:
            self._pool.starter.close()
            self._pool = None

    def run_jobs(self, job_overrides: Sequence[Sequence[str]], cfg: DictConfig, loader: Any) -> list[JobReturn]:
        """What Hydra's launcher calls: runs those jobs of a grid that are not done.

        Args:
            cfg: composed from the words that are not swept, `hydra` in it; loader: Hydra's.

        Returns:
            each one's result (nan: it has none), for Hydra's sweeper.

        Raises:
            UserError: none of them can run.
        """
        sweep = self.sweep
        here = sweep.launcher not in SUBMITTING
        faults = faults_before(job_overrides, cfg, loader, sweep.command.config_dirs, here=here)
        rows = self.rows_for(job_overrides)
        left = [row for row in rows if row.state not in ENDED]
        words = {row.number: job for row, job in zip(rows, job_overrides, strict=True)}
        with self._heard.listening():  # from the first word on: who reads it may answer with Ctrl-C
            say_begin(sweep.console, sweep.folder, rows, left, len(sweep.slots()))
            say_faults(sweep.console, {rows[number].name: str(error) for number, error in faults.items()}, sure=here)
            if left:
                self.run(Grid.of(self.job_of(row, words[row.number]) for row in left))
        return [self._returned(sweep.ledger[row.number], words[row.number]) for row in rows]

    def rows_for(self, job_overrides: Sequence[Sequence[str]], *, all_vary: bool = False) -> list[Row]:
        """Their rows in the ledger, new ones among them; what the sweep is stands in its folder from here on.

        Args:
            all_vary: as `rows.assigned`; for a search, which does not know its jobs beforehand.
        """
        sweep = self.sweep
        if not self.asked:
            sweep.begin_anew()
            sweep.record()
        rows = assigned(sweep.ledger, [own_words(job, sweep.swept) for job in job_overrides], all_vary=all_vary)
        if job_overrides:
            self._fixed = [word for word in job_overrides[0] if key_of(word) not in sweep.swept]
        if not self.asked:
            sweep.ledger.compact()
        self.asked += [row.number for row in rows]
        return rows

    def job_of(self, row: Row, overrides: Sequence[str]) -> Job:
        """How a job is started."""
        run = self.sweep.folder / row.name
        return Job(number=row.number, name=row.name, words=job_words(self.sweep.command, run, overrides))

    def run(self, source: Source) -> None:
        """Runs the source's jobs.

        Raises:
            Stopped: a signal ended the sweep, after the jobs that were running had ended.
            RunFailed: the disk is full, no process can be started.
        """
        sweep = self.sweep
        if sweep.elsewhere is not None:
            sweep.elsewhere.run(source)
            return
        with self._heard.listening():  # before the first process is forked
            pool = self._started_pool()
            try:
                pool.run(source)
            except OSError as error:  # a log cannot be begun, no process be started
                raise RunFailed(
                    f"sweep: {error}; jobs that run save what they have.\n  Go on: {go_on(sweep.folder)}"
                ) from error
            finally:
                pool.display.close()
        if (name := self._heard.first) is not None:
            say_stopped(sweep.console, sweep.folder, [sweep.ledger[number] for number in self.asked], name)
            raise Stopped(name, EXIT_CODES[name])

    def run_what_is_left(self) -> None:
        """After `-m sweep_dir=PATH` alone: jobs of earlier commands too, as far as their words are written down."""
        sweep = self.sweep
        rows = [row for row in sweep.ledger if row.state not in ENDED and row.number not in self.asked]
        if not sweep.alone or sweep.launcher not in OURS:
            return
        if hidden := [row.name for row in rows if any(map(hidden_keys, row.overrides))]:
            told = "their words hold secrets, which are not written down; type them again"
            sweep.console.row("left", f"{', '.join(hidden)}: {told}")
            self.asked += [row.number for row in rows if row.name in hidden]  # they are not done
            rows = [row for row in rows if row.name not in hidden]
        if not rows:
            return
        sweep.console.row("sweep", f"{len(rows)} more of earlier commands")
        self.asked += [row.number for row in rows]
        self.run(Grid.of(self.job_of(row, [*self._fixed, *row.overrides]) for row in rows))

    def _started_pool(self) -> Pool:
        if self._pool is None:
            sweep, options, at_once = self.sweep, self.sweep.options, self.sweep.slots()
            lock = sweep.lock.fileno() if sweep.lock is not None else None
            threads = {name: value for name, value in at_once[0].environment.items() if name == "OMP_NUM_THREADS"}
            starter = Warm(lock, threads, lambda text: sweep.console.row("", text), options.warm)
            planned = options.search.num_trials if sweep.sweeper == SEARCH else 0
            display = SweepTable(sweep.console, options.metric, len(at_once), planned)
            self._pool = Pool(
                sweep.folder,
                sweep.ledger,
                at_once,
                starter,
                display,
                options.retries,
                options.metric,
                self._heard,
            )
        return self._pool

    def job(self, cfg: DictConfig) -> dict[str, Any]:
        """What another launcher of Hydra (basic, joblib) calls for each job, in its own process."""
        return in_this_process(self.sweep.command, cfg)

    def _returned(self, row: Row, overrides: Sequence[str]) -> JobReturn:
        ret = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
        ret.return_value = row.result if row.result is not None else math.nan
        return ret
