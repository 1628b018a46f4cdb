"""The study of a search: what Optuna is asked and told, its trials in a journal in the sweep's folder (extra `search`).

optuna.jsonl    a line for each thing that happened; Optuna reads it again when the search goes on, and so can anybody:
                optuna.load_study(study_name="search", storage=JournalStorage(JournalFileBackend("optuna.jsonl")))

A trial's random numbers come from sweep.search.seed and its row's number alone. So a search that was killed goes on with the
values that it would have chosen (https://optuna.readthedocs.io, "Ask-and-Tell Interface", "JournalStorage").
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dumbo.errors import UserError
from dumbo.outputs.places import short
from dumbo.sweep.options import SearchOptions, SweepOptions
from dumbo.sweep.space import Dimension, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

JOURNAL, NAME = "optuna.jsonl", "search"
JOB = "job"
"""A trial's attribute: the number of its row in the ledger."""
Told = Literal["COMPLETE", "PRUNED", "FAIL"]


@dataclass
class Study:
    """Optuna's study, by the numbers of the ledger's rows.

    Args:
        at_once: trials that run at once.
    """

    study: Any
    distributions: dict[str, BaseDistribution]
    options: SearchOptions
    at_once: int = 1
    _live: dict[int, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, space: Space, options: SweepOptions, at_once: int) -> Study:
        """Begins the study in a sweep's folder, or takes it up again. The caller has the sweep's lock.

        Raises:
            UserError: it optimizes in another direction, or its trials had other keys or values.
        """
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        _mend(folder / JOURNAL)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        study = optuna.create_study(
            storage=storage,
            study_name=NAME,
            direction=options.direction,
            load_if_exists=True,
            pruner=pruner(options.search),
        )
        if (before := study.direction.name.lower()) != options.direction:
            raise UserError(
                f"sweep.direction={options.direction}, but the search in {short(folder)} was begun with sweep.direction={before}.\n"
                "  Leave it as it was, or begin another search: sweep_dir=FOLDER."
            )
        found = cls(study, {one.key: distribution(one) for one in space.dimensions}, options.search, at_once)
        found._require_same_values()
        return found

    def _require_same_values(self) -> None:
        from optuna.distributions import check_distribution_compatibility

        for trial in self.jobs().values():
            if {*trial.distributions} != {*self.distributions}:
                raise UserError(
                    f"The search was begun over {', '.join(trial.distributions)}, and is now over {', '.join(self.distributions)}.\n"
                    "  Search over the same keys, or begin another search: sweep_dir=FOLDER."
                )
            for key, before in trial.distributions.items():
                try:
                    check_distribution_compatibility(before, self.distributions[key])
                except ValueError as error:
                    raise UserError(
                        f"{key}: the search was begun over {_said(before)}, and is now over {_said(self.distributions[key])}.\n"
                        "  Only the ends of an interval or a range may change. Restore it, or begin another search: sweep_dir=FOLDER."
                    ) from error

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number; they are not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def jobs(self) -> dict[int, FrozenTrial]:
        """Row's number -> trial, of those that have a row."""
        return {trial.user_attrs[JOB]: trial for trial in self.trials if JOB in trial.user_attrs}

    # ---- asked ------------------------------------------------------------------------------------------------------

    def ask(self, row: int, params: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """A new trial: its number, and key -> value.

        Args:
            row: the number that its row is going to have.
            params: the values, where they are not for Optuna to choose.
        """
        with _quietly():
            if params is not None:
                self.study.enqueue_trial(dict(params))
            self.study.sampler = self._sampler(row)
            trial = self.study.ask(self.distributions)
        self._live[trial.number] = trial
        return trial.number, {key: trial.params[key] for key in self.distributions}

    def belongs_to(self, number: int, row: int) -> None:
        """Notes the row of a trial."""
        self._trial(number).set_user_attr(JOB, row)

    def _sampler(self, row: int) -> BaseSampler:
        import numpy as np
        from optuna.samplers import RandomSampler, TPESampler

        seed = int(np.random.SeedSequence([self.options.seed, row]).generate_state(1)[0])
        if self.options.sampler == "random":
            return RandomSampler(seed)
        return TPESampler(
            n_startup_trials=self.options.random_trials, multivariate=True, constant_liar=self.at_once > 1, seed=seed
        )

    def _trial(self, number: int) -> Any:
        """The trial as Optuna's own object, made anew for one of an earlier process."""
        import optuna

        if number not in self._live:
            with _quietly():
                self._live[number] = optuna.trial.Trial(self.study, self.trials[number]._trial_id)
        return self._live[number]

    # ---- told -------------------------------------------------------------------------------------------------------

    def report(self, number: int, values: Mapping[int, float]) -> bool:
        """Tells what a trial had at these steps, those that were told before left out; True: it is to be stopped."""
        trial, known = self._trial(number), self.trials[number].intermediate_values
        for step, value in values.items():
            if step not in known:
                trial.report(value, step)
        with _quietly():
            return bool(values) and self.options.pruner != "none" and trial.should_prune()

    def tell(self, number: int, told: Told, value: float | None = None) -> None:
        """How a trial ended: once, a second time is passed over."""
        from optuna.trial import TrialState

        with _quietly():
            values = value if told == "COMPLETE" else None
            self.study.tell(number, values, state=TrialState[told], skip_if_finished=True)
        self._live.pop(number, None)


def distribution(one: Dimension) -> BaseDistribution:
    """A dimension as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.kind == "choice":
        return CategoricalDistribution(one.choices)
    if one.kind == "int":
        return IntDistribution(int(one.low), int(one.high), log=one.log, step=int(one.step or 1))
    return FloatDistribution(one.low, one.high, log=one.log, step=one.step)


def pruner(options: SearchOptions) -> BasePruner:
    """What stops trials early."""
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

    first = options.prune_after_step
    with _quietly():
        if options.pruner == "median":
            return MedianPruner(n_startup_trials=options.prune_after_trials, n_warmup_steps=first or 0)
        if options.pruner == "asha":
            return SuccessiveHalvingPruner(min_resource="auto" if first is None else first)
        if options.pruner == "hyperband":
            return HyperbandPruner(min_resource=first or 1)
    return NopPruner()


def _said(one: Any) -> str:
    if hasattr(one, "choices"):
        return f"the choices {', '.join(map(str, one.choices))}"
    return f"{one.low:g} to {one.high:g}{' (log)' if one.log else ''}{' (whole numbers)' if type(one).__name__ == 'IntDistribution' else ''}"


def _mend(file: Path) -> None:
    """What a killed process left: a line that was cut short, and Optuna's own lock, which it would wait 30 s for."""
    for lock in file.parent.glob(f"{file.name}.lock*"):
        lock.unlink(missing_ok=True)
    if not file.is_file():
        return
    text = file.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(file, whole)


class _quietly(warnings.catch_warnings):
    """Context: what is warned of although it is meant (what Optuna calls experimental; numpy, of losses that are nan)."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        import optuna

        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        return entered
