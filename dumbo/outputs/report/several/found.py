"""Typed paths -> runs: one run, a sweep, or several of either beside one another."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dumbo.errors import UserError
from dumbo.outputs.places import short
from dumbo.outputs.report.several.jobs import Several, job_of, less_is_better
from dumbo.outputs.report.several.places import is_sweep, runs_within
from dumbo.outputs.report.several.sweep import result_of, sweep_of, usual_metric
from dumbo.outputs.runs import find_run
from dumbo.suggest import did_you_mean

PAGE = "comparison.html"
LISTED = 5


def found(paths: Sequence[str], metric: str | None, direction: str | None) -> Several | None:
    """What is to be shown together; None for a single run.

    Raises:
        UserError: a path that is neither a run nor holds any.
    """
    folders = [_folder(path) for path in paths]
    if len(folders) == 1:
        return sweep_of(folders[0], metric, direction) if is_sweep(folders[0]) else None
    runs = [run for folder in folders for run in (runs_within(folder) if is_sweep(folder) else [folder])]
    runs = list(dict.fromkeys(run.resolve() for run in runs))
    if len(runs) < 2:
        raise UserError(f"report: {paths[0]} and {paths[1]} are the same run.\n  Name another one to compare it with.")
    faults: list[str] = []
    jobs = [job_of(run, name, faults) for run, name in zip(runs, _names(runs), strict=True)]
    chosen = metric or usual_metric(jobs)
    jobs = [replace(job, result=result_of(job, chosen, own=False)) for job in jobs]
    return Several(f"{len(jobs)} runs", Path.cwd(), jobs, chosen, less_is_better(chosen, direction), faults=faults)


def _folder(path: str) -> Path:
    if path == "last":
        return find_run("last").absolute()
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(f"report: there is no folder '{path}'.{did_you_mean(folder.name, siblings)}")
    sweeps = sorted(file.parent for file in folder.glob("*/ledger.jsonl"))
    if sweeps and not (folder / "ledger.jsonl").is_file():
        listed = "\n".join(f"  python -m dumbo report {shlex.quote(short(sweep))}" for sweep in sweeps[:LISTED])
        more = f"\n  … and {len(sweeps) - LISTED:,} more" if len(sweeps) > LISTED else ""
        raise UserError(
            f"report: '{path}' holds {len(sweeps):,} sweep{'s' * (len(sweeps) != 1)}. Write one of\n{listed}{more}"
        )
    if not (folder / "run.json").is_file() and not is_sweep(folder):
        raise UserError(
            f"report: '{path}' is neither a run's folder (there is no run.json in it) nor a sweep's.\n"
            "  Write run=last, or the folder of a run or of a sweep."
        )
    return folder


def _names(runs: Sequence[Path]) -> list[str]:
    """Their paths without what all of them share."""
    shared = os.path.commonpath([run.parent for run in runs])
    return [str(run.relative_to(shared)) for run in runs]
