"""A search (`-m hydra/sweeper=optuna`): a source of the pool's jobs that asks Optuna for each, and tells it how it went.

    space.py (what was typed) -> study.py (Optuna) -> a trial: a row of the ledger, a job of the pool -> told

A trial is asked for when a slot is free. Its held-out losses are told as metrics.jsonl gets them; a trial that is worse than
others at the same step is stopped, after saving. One that fails is told so, and the search goes on. A trial is told only after its
row says how it ended: one that ran when the search was killed goes on from its checkpoint, and is told once.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from dumbo.errors import UserError
from dumbo.outputs.places import short, typed
from dumbo.outputs.runs import facts_if_whole
from dumbo.outputs.secrets import masked_words
from dumbo.sweep.folder import read_sweep, write_facts
from dumbo.sweep.ledger import Row
from dumbo.sweep.pool import Job
from dumbo.sweep.runner import Runner
from dumbo.sweep.space import Space
from dumbo.sweep.study import JOB, JOURNAL, Study
from dumbo.sweep.sweep import Sweep
from dumbo.sweep.sweeper import faults_before
from dumbo.sweep.typed import suffix

LISTED = 10_000
"""Spaces of so many combinations are gone through without trying one twice."""


def search(runner: Runner, words: Sequence[str], cfg: DictConfig, loader: Any) -> None:
    """Runs the trials that are left. What Hydra's sweeper calls.

    Args:
        words: hydra.sweeper.params and the sweep's words.
        cfg: composed from the words that are not swept, `hydra` in it.
        loader: Hydra's.

    Raises:
        UserError: something that cannot be searched, or fits no run; a run does not have the metric.
        Stopped: a signal ended it.
    """
    sweep, space = runner.sweep, Space.of(words, loader, cfg)
    sweep.swept = [one.key for one in space.dimensions]
    faults_before(space.samples(), cfg, loader, sweep.command.config_dirs)
    study = Study.open(sweep.folder, space, sweep.options, sweep.at_once)
    source = Search(runner, space, study)
    source.require_own()
    runner.rows_for([])
    source.take_up()
    write_facts(sweep.folder, {**read_sweep(sweep.folder), "planned": source.planned})
    source.say_begin()
    try:
        runner.run(source)
    finally:
        source.say_end()
    if source.without_metric is not None:
        raise UserError(source.without_metric)


@dataclass
class Search:
    """The source.

    Attributes:
        left: jobs of earlier invocations that are not at their end.
        without_metric: what is said when a run does not have the metric; no more trials are begun then.
    """

    runner: Runner
    space: Space
    study: Study
    left: deque[Job] = field(default_factory=deque)
    without_metric: str | None = None
    _trials: dict[int, int] = field(default_factory=dict)
    _own: dict[int, list[str]] = field(default_factory=dict)
    _reports: int = 0

    @property
    def sweep(self) -> Sweep:
        """What is searched in."""
        return self.runner.sweep

    # ---- taken up ---------------------------------------------------------------------------------------------------

    def require_own(self) -> None:
        """Raises a UserError when the ledger has jobs that the study does not know, or Optuna was told another metric."""
        known = self.study.jobs()
        other = self.sweep.folder.with_name(f"{self.sweep.folder.name}-2")
        if any(row.number not in known for row in self.sweep.ledger):
            raise UserError(
                f"sweep_dir: {short(self.sweep.folder)} has jobs that {JOURNAL} there does not know.\n"
                f"  Restore {JOURNAL}, or begin another search: {typed('sweep_dir', other)}"
            )

        metric, before = self.sweep.options.metric, read_sweep(self.sweep.folder).get("metric")
        told = any(trial.value is not None or trial.intermediate_values for trial in self.study.trials)
        if told and before not in (None, metric):
            raise UserError(
                f"sweep.metric={metric}, but the search in {short(self.sweep.folder)} was begun with sweep.metric={before}.\n"
                f"  Leave it as it was, or begin another search: {typed('sweep_dir', other)}"
            )

    def take_up(self) -> None:
        """Puts jobs first that did not end, and tells Optuna the ends that it was not told."""
        ledger = self.sweep.ledger
        written = {row.number for row in ledger}
        for trial in self.study.trials:
            row = trial.user_attrs.get(JOB)
            if row in written:
                self._know(row, trial.number, trial.params)
            elif (
                trial.state.name == "RUNNING"
            ):  # it was asked for when the search was killed: its row's turn comes again
                self.study.tell(trial.number, "FAIL")
        self.runner.asked += [row.number for row in ledger]
        for row in ledger:
            if row.state in self.sweep.final:
                self._tell(row)
            else:
                self.left.append(self._job(row.number))

    def _know(self, row: int, trial: int, params: Mapping[str, Any]) -> None:
        self._trials[row] = trial
        self._own[row] = self.space.own(params)

    # ---- the pool's source ------------------------------------------------------------------------------------------

    def next(self) -> Job | None:
        """The next trial: one that was begun earlier, or what Optuna chooses now; None when there are enough."""
        if self.left:
            return self.left.popleft()
        if self.without_metric is not None or len(self.sweep.ledger) >= self.sweep.options.search.num_trials:
            return None
        if self.space.size is not None and self.space.size <= min(LISTED, len(self._own)):
            return None
        row = self.sweep.ledger.next_number
        number, params = self.study.ask(row)
        if (earlier := self._row_with(params)) is not None:
            self._tell(self.sweep.ledger[earlier], number)
            number, params = self.study.ask(row, self._untried())
        self._begin(row, number, params)
        self.runner.asked.append(row)
        return self._job(row)

    def _row_with(self, params: Mapping[str, Any]) -> int | None:
        """An earlier row of the same values, in a space that can be gone through."""
        if self.space.size is None or self.space.size > LISTED:
            return None
        own = self.space.own(params)
        return next((row for row, words in self._own.items() if words == own), None)

    def _untried(self) -> dict[str, Any]:
        """One of the combinations that no trial had, by chance."""
        tried = {tuple(own) for own in self._own.values()}
        left = [params for params in self.space.combinations() if tuple(self.space.own(params)) not in tried]
        return random.Random(f"{self.sweep.options.search.seed} {len(tried)}").choice(left)

    def watch(self, job: Job, last_rows: Sequence[dict[str, Any]]) -> bool:
        """Tells Optuna the metric where new rows have it; True: the trial is worse than others."""
        metric = self.sweep.options.metric
        values = {
            int(row["step"]): math.nan if row[metric] is None else float(row[metric])
            for row in last_rows
            if metric in row and row.get("step")
        }
        if not values:
            return False
        self._reports += 1
        stop = self.study.report(self._trials[job.number], values)
        planned = facts_if_whole(self.sweep.folder / job.name).get("planned_steps")
        return stop and not (planned and max(values) >= planned)  # at the last step all is done already

    def finished(self, job: Job, outcome: Row) -> None:
        """Tells Optuna; nothing of one that was interrupted, which goes on the next time."""
        if outcome.state in self.sweep.final:
            self._tell(outcome)

    # ---- a trial ----------------------------------------------------------------------------------------------------

    def _begin(self, row: int, number: int, params: Mapping[str, Any]) -> None:
        """Writes a trial's row."""
        self._know(row, number, params)
        self.study.belongs_to(number, row)
        name = f"{row:03d}{suffix(self.space.short(params))}"
        overrides = masked_words(self._own[row])
        self.sweep.ledger.put([Row(number=row, name=name, overrides=overrides)])

    def _job(self, row: int) -> Job:
        return self.runner.job_of(self.sweep.ledger[row], self.space.job(self._own[row]))

    def _tell(self, row: Row, trial: int | None = None) -> None:
        """Tells Optuna how a trial ended.

        Args:
            trial: another one of the same values; None: the row's own.
        """
        number, metric = self._trials[row.number] if trial is None else trial, self.sweep.options.metric
        if row.state == "done" and metric not in row.metrics:
            self.without_metric = (
                f"sweep.metric={metric}: run.json of {row.name} has no such metric, and nothing can be learned from it.\n"
                f"  It has {', '.join(row.metrics)}. Write sweep.metric=ONE of them; what is done stays."
            )
            return
        value = row.metrics.get(metric)
        if row.state == "done" and isinstance(value, int | float) and math.isfinite(value):
            self.study.tell(number, "COMPLETE", float(value))
        else:
            self.study.tell(number, "PRUNED" if row.state == "pruned" else "FAIL")

    # ---- said -------------------------------------------------------------------------------------------------------

    def say_begin(self) -> None:
        """What is searched, how, how far it is."""
        options, console = self.sweep.options.search, self.sweep.console
        begun = len(self.sweep.ledger)
        told = [f"{begun - len(self.left)} ended already"] if begun > len(self.left) else []
        told += [f"{len(self.left)} go on from where they were"] if self.left else []
        told += [f"{self.sweep.at_once} at once"] if self.sweep.at_once > 1 else []
        told += [options.sampler, "none is stopped early" if options.pruner == "none" else f"pruner {options.pruner}"]
        console.row("search", f"{self.planned} trials in {short(self.sweep.folder)}: {', '.join(told)}")
        console.row("over", "\n".join(map(str, self.space.dimensions)))

    @property
    def planned(self) -> int:
        """Trials in all: fewer than asked for where there are fewer combinations."""
        wanted = max(self.sweep.options.search.num_trials, len(self.sweep.ledger))
        return min(wanted, max(self.space.size, len(self.sweep.ledger))) if self.space.size else wanted

    def say_end(self) -> None:
        """How the trials ended, and the values of the best."""
        ledger, options, console = self.sweep.ledger, self.sweep.options, self.sweep.console
        counts = ", ".join(f"{count} {state}" for state, count in ledger.counts().items())
        console.row("search", f"{len(ledger)} of {self.planned} trials: {counts or 'none begun'}")
        if options.search.pruner != "none" and not self._reports and any(row.attempt for row in ledger):
            console.row("", f"none was stopped early: no evaluation while training has {options.metric}")
        done = [row for row in ledger if row.state == "done" and row.result is not None]
        if done:
            best = (min if options.direction == "minimize" else max)(done, key=lambda row: row.result or 0.0)
            console.row("values", f"{' '.join(best.overrides)}   ({best.name})")
