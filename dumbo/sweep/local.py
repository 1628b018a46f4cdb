"""A sweep on this machine: one process a job, one after another; a job that fails does not end it.

multirun_outputs/DATE/TIME/000-trainer.lr=1e-4-3f9c/   a run's folder each
multirun_outputs/DATE/TIME/000-….log                   what the job printed
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from dumbo.command import Command
from dumbo.errors import Stopped, UserError
from dumbo.hydra_node import key_of
from dumbo.outputs.console import Console
from dumbo.outputs.secrets import masked_words
from dumbo.override_text import value_text
from dumbo.refuse import SWEEP_WANTED, typed_text
from dumbo.sweep.job import run_job
from dumbo.trainer.signals import EXIT_CODES

LONGEST_NAME = 80


@dataclass
class Sweep:
    """One sweep.

    Attributes:
        folder: where its runs lie.
        outcomes: (job's name, exit code, metrics) in order.
    """

    command: Command
    folder: Path
    console: Console = field(default_factory=Console)
    outcomes: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)

    _current: ClassVar[Sweep | None] = None

    @classmethod
    def begin(cls, command: Command) -> Sweep:
        """Chooses the folder: `sweep_dir=`, or multirun_outputs/DATE/TIME."""
        typed = typed_text(command.overrides, "sweep_dir")
        now = datetime.now()
        folder = (
            Path(typed).expanduser()
            if typed
            else Path("multirun_outputs") / now.strftime("%Y-%m-%d") / now.strftime("%H-%M-%S")
        )
        cls._current = cls(command, folder.absolute())
        return cls._current

    @classmethod
    def current(cls) -> Sweep:
        if cls._current is None:
            raise UserError(f"hydra.mode is MULTIRUN: {SWEEP_WANTED}")
        return cls._current

    def run_jobs(self, job_overrides: Sequence[Sequence[str]], first_number: int) -> list[JobReturn]:
        """Runs the jobs; gives Hydra's sweeper each one's held-out loss (nan: it failed)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        jobs = [[word for word in overrides if _is_own(word)] for overrides in job_overrides]
        common = set.intersection(*(set(job) for job in jobs)) if len(jobs) > 1 else set(jobs[0])
        self.console.row("sweep", f"{len(jobs)} jobs in {self.folder}")
        return [
            self._run_job(
                job, f"{first_number + index:03d}{_suffix(masked_words([w for w in job if w not in common]))}"
            )
            for index, job in enumerate(jobs)
        ]

    def _run_job(self, overrides: list[str], name: str) -> JobReturn:
        run_dir, log = self.folder / name, self.folder / f"{name}.log"
        words = [f"--config-dir={folder}" for folder in self.command.config_dirs]
        words += ["train", *([str(self.command.file)] if self.command.file else [])]
        words += [*overrides, *self._places(), f"run_dir={value_text(str(run_dir))}"]
        with self.console.status(f"{name} is running"):
            code, stopped_by = run_job(words, log)
        facts = json.loads((run_dir / "run.json").read_text()) if (run_dir / "run.json").is_file() else {}
        metrics = facts.get("metrics", {})
        self.outcomes.append((name, code, metrics))
        if code == 0:
            shown = "  ".join(
                f"{key} {metrics[key]:.4f}" for key in ("train_loss", "eval_loss", "exact_match") if key in metrics
            )
            self.console.row("", f"{name}  {shown}")
        else:
            said = (log.read_text(encoding="utf-8").strip().splitlines() or ["no output"])[-3:]
            self.console.row("", f"{name}  failed (exit code {code}): {' '.join(said)[:300]}")
        if stopped_by is not None:
            self._stop(stopped_by)
        ret = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
        ret.return_value = metrics.get("eval_loss", metrics.get("train_loss", math.nan)) if code == 0 else math.nan
        return ret

    def _stop(self, signal_name: str) -> NoReturn:
        """Ends the sweep after the job that was running has."""
        name, code, _ = self.outcomes[-1]
        saved = " (saved)" if code in (130, 143) and any(self.folder.glob(f"{name}/checkpoints/step-*")) else ""
        self.console.row("stopped", f"{signal_name}: {name} was running{saved}; the jobs after it were not started")
        raise Stopped(signal_name, EXIT_CODES[signal_name])

    def job(self, cfg: DictConfig) -> dict[str, Any]:
        """What another launcher of Hydra (basic, joblib) calls for each job, in its own process."""
        from dumbo.check import check
        from dumbo.compose import composed_of
        from dumbo.train import train

        composed = composed_of(cfg)
        composed.cfg.run_dir = HydraConfig.get().runtime.output_dir
        own = [str(word) for word in HydraConfig.get().overrides.task if _is_own(str(word))]
        command = replace(self.command, overrides=(*own, *self._places()))
        return train(check(composed.cfg, composed.choices, command.config_dirs), composed, command)

    def _places(self) -> list[str]:
        """Where a job finds its YAML files: what was typed of it for the sweep."""
        return [word for word in self.command.overrides if key_of(word) == "hydra.searchpath"]

    def finish(self) -> int:
        """Says how it went; 1 when a job failed."""
        failed = [name for name, code, _ in self.outcomes if code != 0]
        done = [
            (metrics["eval_loss"], name)
            for name, code, metrics in self.outcomes
            if code == 0 and "eval_loss" in metrics
        ]
        if done:
            loss, name = min(done)
            self.console.row("best", f"{name}  held-out loss {loss:.4f}")
        if failed:
            self.console.row("failed", f"{len(failed)} of {len(self.outcomes)}: {', '.join(failed)}")
        if not self.console.fancy:
            self.console.plain(str(self.folder))
        return 1 if failed else 0


def _is_own(word: str) -> bool:
    """Whether an override belongs to the job rather than to the sweep."""
    return not word.lstrip("+~").startswith(("hydra.", "hydra/", "sweep_dir=", "from_file="))


def _suffix(varied: Sequence[str]) -> str:
    """What a job's folder is called besides its number: its own overrides, readable, short, and a hash against clashes."""
    if not varied:
        return ""
    text = "-".join(varied)
    readable = "".join(char if (char.isascii() and char.isalnum()) or char in "=._-+" else "_" for char in text)[
        :LONGEST_NAME
    ]
    return f"-{readable}-{hashlib.sha256(text.encode()).hexdigest()[:4]}"
