"""A sweep on this machine: each job a process of its own, one after another or several at once; it can always be gone on with.

    begin (which folder) -> open (the base config, the lock, the ledger) -> run_jobs (Hydra's launcher) -> finish.py (how it went)

A job that fails does not end it. The folder is described in docs/sweeps.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from dumbo.bind import section
from dumbo.command import Command
from dumbo.errors import RunFailed, Stopped, UserError
from dumbo.faults import Report
from dumbo.hydra_node import key_of
from dumbo.outputs.console import Console
from dumbo.outputs.places import short
from dumbo.outputs.secrets import hidden_keys, masked_words
from dumbo.refuse import SWEEP_WANTED
from dumbo.resolve import resolved
from dumbo.slurm.rows import submitted, taken_up
from dumbo.sweep.base import Base
from dumbo.sweep.folder import SweepLock
from dumbo.sweep.heard import Heard, not_deaf
from dumbo.sweep.job_words import in_this_process, job_words
from dumbo.sweep.launchers import OURS, SUBMITTING, launcher_of
from dumbo.sweep.ledger import ENDED, Ledger, Row, State
from dumbo.sweep.ledger import FILE as LEDGER
from dumbo.sweep.options import SweepOptions
from dumbo.sweep.pool import Grid, Job, Pool, Source
from dumbo.sweep.rows import assigned, begun_anew, settle
from dumbo.sweep.slots import Slot, slots
from dumbo.sweep.sweeper import SEARCH, faults_before, require_same, sweeper_of
from dumbo.sweep.table import SweepTable
from dumbo.sweep.told import counted, go_on, say_begin, say_faults, say_stopped
from dumbo.sweep.trusted import require_inside, require_no_code
from dumbo.sweep.typed import folder_of, own_words, swept_keys, to_record, with_recorded
from dumbo.sweep.warm import Warm
from dumbo.trainer.signals import EXIT_CODES

if TYPE_CHECKING:
    from dumbo.slurm.pool import SlurmPool


@dataclass
class Sweep:
    """One sweep, in the process that runs it.

    Attributes:
        folder: where its runs lie, absolute.
        alone: nothing but the folder was typed: every job of the ledger that is left is meant.
        launcher, sweeper: Hydra's names of them.
        swept: the keys with several values.
        asked: numbers of the jobs that this invocation is about.
        elsewhere: what runs its jobs, where they do not run in slots of this machine.
    """

    command: Command
    folder: Path
    alone: bool = False
    console: Console = field(default_factory=Console)
    options: SweepOptions = field(default_factory=SweepOptions)
    launcher: str = "process"
    sweeper: str = "basic"
    swept: list[str] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    elsewhere: SlurmPool | None = None
    ledger: Ledger = field(init=False)
    _base: Base = field(default_factory=Base)
    _heard: Heard = field(default_factory=Heard)
    _fixed: list[str] = field(default_factory=list)
    _lock: SweepLock | None = None
    _pool: Pool | None = None

    _current: ClassVar[Sweep | None] = None

    @classmethod
    def begin(cls, command: Command) -> Sweep:
        """Chooses the folder: `sweep_dir=`, or multirun_outputs/ with a name of the command's."""
        command, alone = with_recorded(command)
        cls._current = cls(command, folder_of(command), alone)
        cls._current.ledger = Ledger(cls._current.folder / LEDGER)
        return cls._current

    @classmethod
    def current(cls) -> Sweep:
        if cls._current is None:
            raise UserError(f"hydra.mode is MULTIRUN: {SWEEP_WANTED}")
        return cls._current

    def __enter__(self) -> Sweep:
        not_deaf()
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # ---- begun, or gone on with -----------------------------------------------------------------------------------

    def open(self, cfg: DictConfig) -> None:
        """Takes the folder, once the config of the fixed words is composed and before any job is.

        Raises:
            UserError: a live sweep has it; it is another sweep's; the base config changed.
        """
        report = Report(config_dirs=self.command.config_dirs)
        self.options = section("sweep", SweepOptions, resolved(cfg.sweep, "sweep", report), report)
        report.stop_if_any()
        self.launcher = launcher_of(cfg, self.command.overrides, self.options)
        self.sweeper = sweeper_of(cfg, self.command.overrides, self.launcher, OURS)
        sweeper = OmegaConf.to_container(cfg.hydra.sweeper, resolve=False)
        params = sweeper.get("params") or {} if isinstance(sweeper, dict) else {}
        self.swept = list(dict.fromkeys([*swept_keys(self.command.overrides), *(key_of(str(name)) for name in params)]))
        self._base = Base.of(cfg)
        if self.options.detach and self.launcher not in SUBMITTING:
            raise UserError("sweep.detach=true is for hydra/launcher=submitit_slurm: other jobs end with the sweep.")
        if self.launcher not in OURS:
            return
        self._slots()  # a machine that has not what is asked for, before anything is written
        self._lock = SweepLock(self.folder)
        self._lock.take(lambda text: self.console.row("waiting", text))
        self.ledger = Ledger.open(self.folder)
        if self.ledger.torn:
            self.console.row("ledger", "a line that a crash cut short is left out")
        require_inside(self.folder, self.ledger)
        if self.alone:
            left = [row for row in self.ledger if row.state not in ENDED and not any(map(hidden_keys, row.overrides))]
            require_no_code(self.folder, left, self.command, self.swept)
        if self.launcher in SUBMITTING:
            from dumbo.slurm.pool import SlurmPool

            self.elsewhere = SlurmPool.of(cfg, self.launcher, self.options, self.folder, self.ledger, self.console)
        taken_up(self.folder, self.ledger, self.options, submits=self.launcher in SUBMITTING)
        settle(self.ledger, self.folder, self.options.metric, lambda text: self.console.row("waiting", text))
        if len(self.ledger):
            self._base.compare(self.folder, force=self.options.force)
        if self._base.changed and (left := submitted(self.ledger)):
            raise UserError(
                f"sweep.force=true: {counted(len(left), 'job')} of {short(self.folder)} are in SLURM with the config as it was.\n"
                f"  dumbo sweep cancel {short(self.folder)}, then the same command."
            )
        if len(self.ledger):
            require_same(self.folder, self.sweeper)

    def _begin_anew(self) -> None:
        """Under sweep.force: jobs that are not done cannot go on from checkpoints of another config."""
        if self._base.changed:
            self.console.row("changed", "\n".join(self._base.changed))
            begun = [row for row in self.ledger if row.state not in self.final and row.attempt]
            begun_anew(self.ledger, self.folder, begun)

    def _record(self) -> None:
        """Writes down what the sweep is; once its jobs are known to compose."""
        told = {
            "typed": to_record(self.command),
            "fixed": masked_words([word for word in self.command.overrides if key_of(word) not in self.swept]),
            "swept": self.swept,
            "launcher": self.launcher,
            "sweeper": self.sweeper,
            **({"search": asdict(self.options.search)} if self.sweeper == SEARCH else {}),
            "metric": self.options.metric,
            "direction": self.options.direction,
        }
        self._base.record(self.folder, told, compared=len(self.ledger) > 0)

    # ---- jobs -------------------------------------------------------------------------------------------------------

    def run_jobs(self, job_overrides: Sequence[Sequence[str]], cfg: DictConfig, loader: Any) -> list[JobReturn]:
        """What Hydra's launcher calls: runs those jobs of a grid that are not done.

        Args:
            cfg: composed from the words that are not swept, `hydra` in it; loader: Hydra's.

        Returns:
            each one's result (nan: it has none), for Hydra's sweeper.

        Raises:
            UserError: none of them can run.
        """
        here = self.launcher not in SUBMITTING
        faults = faults_before(job_overrides, cfg, loader, self.command.config_dirs, here=here)
        rows = self.rows_for(job_overrides)
        left = [row for row in rows if row.state not in ENDED]
        words = {row.number: job for row, job in zip(rows, job_overrides, strict=True)}
        with self._heard.listening():  # from the first word on: who reads it may answer with Ctrl-C
            say_begin(self.console, self.folder, rows, left, len(self._slots()))
            say_faults(self.console, {rows[number].name: str(error) for number, error in faults.items()}, sure=here)
            if left:
                self.run(Grid.of(self.job_of(row, words[row.number]) for row in left))
        return [self._returned(self.ledger[row.number], words[row.number]) for row in rows]

    def rows_for(self, job_overrides: Sequence[Sequence[str]], *, all_vary: bool = False) -> list[Row]:
        """Their rows in the ledger, new ones among them; what the sweep is stands in its folder from here on.

        Args:
            all_vary: as `rows.assigned`; for a search, which does not know its jobs beforehand.
        """
        if not self.asked:
            self._begin_anew()
            self._record()
        rows = assigned(self.ledger, [own_words(job, self.swept) for job in job_overrides], all_vary=all_vary)
        if job_overrides:
            self._fixed = [word for word in job_overrides[0] if key_of(word) not in self.swept]
        if not self.asked:
            self.ledger.compact()
        self.asked += [row.number for row in rows]
        return rows

    def job_of(self, row: Row, overrides: Sequence[str]) -> Job:
        """How a job is started."""
        return Job(number=row.number, name=row.name, words=job_words(self.command, self.folder / row.name, overrides))

    def run(self, source: Source) -> None:
        """Runs the source's jobs.

        Raises:
            Stopped: a signal ended the sweep, after the jobs that were running had ended.
            RunFailed: the disk is full, no process can be started.
        """
        if self.elsewhere is not None:
            self.elsewhere.run(source)
            return
        with self._heard.listening():  # before the first process is forked
            pool = self._started_pool()
            try:
                pool.run(source)
            except OSError as error:  # a log cannot be begun, no process be started
                raise RunFailed(
                    f"sweep: {error}; jobs that run save what they have.\n  Go on: {go_on(self.folder)}"
                ) from error
            finally:
                pool.display.close()
        if (name := self._heard.first) is not None:
            say_stopped(self.console, self.folder, [self.ledger[number] for number in self.asked], name)
            raise Stopped(name, EXIT_CODES[name])

    def run_what_is_left(self) -> None:
        """After `-m sweep_dir=PATH` alone: jobs of earlier commands too, as far as their words are written down."""
        rows = [row for row in self.ledger if row.state not in ENDED and row.number not in self.asked]
        if not self.alone or self.launcher not in OURS:
            return
        if hidden := [row.name for row in rows if any(map(hidden_keys, row.overrides))]:
            told = "their words hold secrets, which are not written down; type them again"
            self.console.row("left", f"{', '.join(hidden)}: {told}")
            self.asked += [row.number for row in rows if row.name in hidden]  # they are not done
            rows = [row for row in rows if row.name not in hidden]
        if not rows:
            return
        self.console.row("sweep", f"{len(rows)} more of earlier commands")
        self.asked += [row.number for row in rows]
        self.run(Grid.of(self.job_of(row, [*self._fixed, *row.overrides]) for row in rows))

    def _started_pool(self) -> Pool:
        if self._pool is None:
            at_once = self._slots()
            lock = self._lock.fileno() if self._lock is not None else None
            threads = {name: value for name, value in at_once[0].environment.items() if name == "OMP_NUM_THREADS"}
            starter = Warm(lock, threads, lambda text: self.console.row("", text), self.options.warm)
            planned = self.options.search.num_trials if self.sweeper == SEARCH else 0
            display = SweepTable(self.console, self.options.metric, len(at_once), planned)
            self._pool = Pool(
                self.folder,
                self.ledger,
                at_once,
                starter,
                display,
                self.options.retries,
                self.options.metric,
                self._heard,
            )
        return self._pool

    @property
    def at_once(self) -> int:
        return self.elsewhere.at_once if self.elsewhere is not None else len(self._slots())

    @property
    def final(self) -> tuple[State, ...]:
        """States of jobs that are not started again: a search goes on to other values where a job failed."""
        return ("done", "pruned", "failed") if self.sweeper == SEARCH else ("done", "pruned")

    def _slots(self) -> list[Slot]:
        return slots(self.options, self.launcher)

    def job(self, cfg: DictConfig) -> dict[str, Any]:
        """What another launcher of Hydra (basic, joblib) calls for each job, in its own process."""
        return in_this_process(self.command, cfg)

    def _returned(self, row: Row, overrides: Sequence[str]) -> JobReturn:
        ret = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
        ret.return_value = row.result if row.result is not None else math.nan
        return ret

    # ---- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Lets go of the folder, with one row a job in the ledger."""
        if self._pool is not None:
            self._pool.starter.close()
            self._pool = None
        if self._lock is not None:
            try:
                self.ledger.compact()
            finally:
                self._lock.release()
                self._lock = None
