"""What a sweep is, and the record that it keeps: its folder, options, launcher, sweeper, swept words, base config.

    begin (which folder) -> open (the base config, the lock, the ledger) -> runner.py (its jobs; recorded before the first one)

A sweep can always be gone on with. The folder is described in docs/sweeps.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from dumbo.bind import section
from dumbo.command import Command
from dumbo.errors import UserError
from dumbo.faults import Report
from dumbo.hydra_node import key_of
from dumbo.outputs.console import Console
from dumbo.outputs.places import short
from dumbo.outputs.secrets import hidden_keys, masked_words
from dumbo.resolve import resolved
from dumbo.slurm.rows import submitted, taken_up
from dumbo.sweep.base import Base
from dumbo.sweep.folder import SweepLock
from dumbo.sweep.launchers import OURS, SUBMITTING, launcher_of
from dumbo.sweep.ledger import ENDED, Ledger, State
from dumbo.sweep.ledger import FILE as LEDGER
from dumbo.sweep.options import SweepOptions
from dumbo.sweep.rows import begun_anew, settle
from dumbo.sweep.slots import Slot, slots
from dumbo.sweep.sweeper import SEARCH, require_same, sweeper_of
from dumbo.sweep.told import counted
from dumbo.sweep.trusted import require_inside, require_no_code
from dumbo.sweep.typed import folder_of, swept_keys, to_record, with_recorded

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
        elsewhere: what runs its jobs, where they do not run in slots of this machine.
        ledger: of its jobs.
        lock: of its folder, while it is held.
    """

    command: Command
    folder: Path
    alone: bool = False
    console: Console = field(default_factory=Console)
    options: SweepOptions = field(default_factory=SweepOptions)
    launcher: str = "process"
    sweeper: str = "basic"
    swept: list[str] = field(default_factory=list)
    elsewhere: SlurmPool | None = None
    ledger: Ledger = field(init=False)
    lock: SweepLock | None = None
    _base: Base = field(default_factory=Base)

    @classmethod
    def begin(cls, command: Command) -> Sweep:
        """Chooses the folder: `sweep_dir=`, or multirun_outputs/ with a name of the command's."""
        command, alone = with_recorded(command)
        sweep = cls(command, folder_of(command), alone)
        sweep.ledger = Ledger(sweep.folder / LEDGER)
        return sweep

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *raised: object) -> None:
        """Lets go of the folder, with one row a job in the ledger."""
        if self.lock is not None:
            try:
                self.ledger.compact()
            finally:
                self.lock.release()
                self.lock = None

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
        self.slots()  # a machine that has not what is asked for, before anything is written
        self.lock = SweepLock(self.folder)
        self.lock.take(lambda text: self.console.row("waiting", text))
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

    def begin_anew(self) -> None:
        """Under sweep.force: jobs that are not done cannot go on from checkpoints of another config."""
        if self._base.changed:
            self.console.row("changed", "\n".join(self._base.changed))
            begun = [row for row in self.ledger if row.state not in self.final and row.attempt]
            begun_anew(self.ledger, self.folder, begun)

    def record(self) -> None:
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

    @property
    def at_once(self) -> int:
        """Jobs that may run at once."""
        return self.elsewhere.at_once if self.elsewhere is not None else len(self.slots())

    @property
    def final(self) -> tuple[State, ...]:
        """States of jobs that are not started again: a search goes on to other values where a job failed."""
        return ("done", "pruned", "failed") if self.sweeper == SEARCH else ("done", "pruned")

    def slots(self) -> list[Slot]:
        """Where its jobs run on this machine; a UserError where that has not what is asked for."""
        return slots(self.options, self.launcher)
