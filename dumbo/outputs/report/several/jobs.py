"""A run as one of several, and all of them: what is compared, in which direction, and by what name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dumbo.outputs.config_hash import flattened
from dumbo.outputs.report.reading import Facts, as_number, json_object, text_of
from dumbo.outputs.report.several.curves import Curves, curves_of
from dumbo.outputs.runs import is_claimed

STATES = {"finished": "done", "preempted": "interrupted", "failed": "failed", "running": "running"}
"""run.json's status -> a job's state."""
LARGER_IS_BETTER = ("exact_match", "accuracy", "acc", "acc_norm", "tokens_per_s", "mfu")


@dataclass(frozen=True)
class Job:
    """One of them.

    Attributes:
        name: what it is called here, shorter than its path.
        path: its folder; None for a job that never had one.
        state: done, failed, interrupted, running, waiting, pruned or cancelled.
        words: what was typed for it: a sweep's job has its own words alone.
        facts: run.json.
        config: config.yaml as leaves ("trainer.lr" -> value).
        result: what is compared; None without one.
        seconds: of all attempts.
        error: why it failed, or its last lines.
        row: the ledger's, for a sweep's job.
    """

    name: str
    path: Path | None
    state: str
    words: tuple[str, ...] = ()
    facts: Facts = field(default_factory=Facts)
    config: Mapping[str, Any] = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)
    result: float | None = None
    seconds: float | None = None
    error: str = ""
    row: Facts = field(default_factory=Facts)

    @property
    def short(self) -> str:
        """For tables that have its settings in columns: a sweep's job's number, which opens its folder's name."""
        number = self.row.number("number")
        return self.name if number is None else f"{number:03d}"

    @property
    def metrics(self) -> Facts:
        """The final numbers: run.json's, or the ledger's where the folder is gone."""
        return self.facts.at("metrics") or self.row.at("metrics")


@dataclass(frozen=True)
class Several:
    """All of them.

    Attributes:
        title: the page's.
        place: a sweep's folder, or where the page of a comparison goes.
        jobs: in their own order (a sweep's by number).
        metric: what is compared.
        minimize: whether less is better.
        sweep: sweep.json; empty for a comparison.
        swept: keys that the sweep was asked to vary.
        faults: what could not be read, in words.
    """

    title: str
    place: Path
    jobs: list[Job]
    metric: str
    minimize: bool
    is_sweep: bool = False
    sweep: Facts = field(default_factory=Facts)
    swept: tuple[str, ...] = ()
    faults: list[str] = field(default_factory=list)

    def ranked(self) -> list[Job]:
        """Those with a result, best first; of equal ones the earlier."""
        sign = 1 if self.minimize else -1
        return sorted((job for job in self.jobs if job.result is not None), key=lambda job: sign * (job.result or 0.0))

    def ordered(self) -> list[Job]:
        """Best first, then those without a result in their own order."""
        return [*self.ranked(), *(job for job in self.jobs if job.result is None)]


def less_is_better(metric: str, direction: Any = None) -> bool:
    """As the sweep says; else by the metric's name."""
    if direction in ("minimize", "maximize"):
        return direction == "minimize"
    return metric.rpartition("/")[2].rpartition(".")[2] not in LARGER_IS_BETTER


def job_of(path: Path, name: str, faults: list[str]) -> Job:
    """A run's folder, read tolerantly; what could not be read goes into `faults`."""

    def kept(found: tuple[Any, str | None]) -> Any:
        if found[1] is not None:
            faults.append(f"{name}: {found[1]}")
        return found[0]

    facts: Facts = kept(json_object(path / "run.json"))
    config, words = kept(_yaml(path / "config.yaml")), kept(_yaml(path / "overrides.yaml"))
    state = STATES.get(facts.text("status") or "", "failed")
    error = facts.text("error") or ""
    if state == "running" and not _alive(path):
        state, error = "interrupted", error or "The run ended without a word: its process is gone."
    return Job(
        name=name,
        path=path,
        state=state,
        words=tuple(str(word) for word in words) if isinstance(words, list) else (),
        facts=facts,
        config=flattened({str(key): value for key, value in config.items()}) if isinstance(config, dict) else {},
        curves=curves_of(path / "metrics.jsonl"),
        seconds=as_number(facts.get("metrics", "seconds")),
        error=error,
    )


def _yaml(file: Path) -> tuple[Any, str | None]:
    """What a YAML file holds; libyaml reads five hundred of them in the time that the Python reader takes for seventy."""
    text, fault = text_of(file)
    if text is None:
        return None, fault
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)), None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None, f"{file.name} is not whole YAML and is left out"


def _alive(path: Path) -> bool:
    try:
        return is_claimed(path)
    except OSError:
        return False


def shown_json(value: Any) -> str:
    """A value that is a list or a mapping, as one text."""
    return json.dumps(value, ensure_ascii=False, default=str, sort_keys=True)
