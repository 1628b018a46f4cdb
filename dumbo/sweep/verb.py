"""`dumbo sweep status|wait|cancel FOLDER`: a sweep as others see it, from its folder alone.

Each action is a function of the sweep's folder and its ledger. Nothing here writes: the process that runs the sweep does. Jobs
in SLURM need no such process: for them the ledger is brought up to date here (dumbo/slurm/verb.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dumbo.errors import UserError
from dumbo.outputs.console import Console
from dumbo.outputs.numbers import finite
from dumbo.outputs.places import short
from dumbo.slurm.rows import job_of, submitted
from dumbo.slurm.verb import cancel_submitted, up_to_date, watched
from dumbo.sweep.folder import FACTS, HOME, holder_of, is_locked, read_sweep, require_sweep
from dumbo.sweep.ledger import ENDED, Ledger, Row
from dumbo.sweep.options import SweepOptions
from dumbo.sweep.outcome import ended
from dumbo.sweep.progress import Progress
from dumbo.sweep.table import plain_table, summary, table
from dumbo.sweep.told import go_on, say_end

LOOK = 0.5
"""Seconds between two looks of `wait`."""


def act(action: str, asked: str, options: SweepOptions) -> int:
    """Runs an action; returns the exit code.

    Raises:
        UserError: there is no such sweep.
    """
    folder = find_sweep(asked)
    return ACTIONS[action](folder, up_to_date(folder, Ledger.open(folder)), options)


def find_sweep(asked: str) -> Path:
    """The folder: a path, or `last`, the sweep below multirun_outputs/ that was begun or gone on with last."""
    if asked == "last":
        found = [file.parent for file in HOME.glob(f"*/{FACTS}")]
        if not found:
            raise UserError(
                f"last: there is no sweep below {HOME}/ here.\n  Write the folder: dumbo sweep status FOLDER"
            )
        return max(found, key=lambda folder: (folder / FACTS).stat().st_mtime).absolute()
    folder = Path(asked).expanduser().absolute()
    require_sweep(folder)
    return folder


def status(folder: Path, ledger: Ledger, options: SweepOptions) -> int:
    """The jobs, how far those are that run, the best, the failures."""
    live = is_locked(folder)
    if not live:
        ledger = as_it_stands(folder, ledger)
    progress = {row.number: looked_at(folder, row) for row in ledger.in_state("running")}
    if options.format == "json":
        print(json.dumps(finite(told(folder, ledger, progress, live)), ensure_ascii=True))
        return 0
    console, facts = Console(), read_sweep(folder)
    console.row("sweep", f"{short(folder)}   {_said(folder, live, ledger)}")
    if console.fancy:
        console.rich.print(table(ledger, progress))
    else:
        for line in plain_table(ledger, progress):
            console.plain(line)
    console.row("jobs", summary(ledger, progress, max(1, len(progress))))
    well = say_end(console, folder, [row for row in ledger if not live or row.state not in ("running", "waiting")],
                   str(facts.get("metric", options.metric)), str(facts.get("direction", options.direction)))  # fmt: skip
    if not live and not well and not submitted(ledger):
        console.row("next", go_on(folder))
    return 0


def wait(folder: Path, ledger: Ledger, options: SweepOptions) -> int:
    """Returns when nobody runs the sweep any more: 0 when all its jobs are done (of a search, all trials), else 1."""
    while is_locked(folder) or watched(folder, Ledger.open(folder)):
        time.sleep(LOOK)
    ledger = as_it_stands(folder, up_to_date(folder, Ledger.open(folder)))
    status(folder, ledger, options)
    return 0 if is_over(folder, ledger) and all(row.state in ENDED for row in ledger) else 1


def cancel(folder: Path, ledger: Ledger, options: SweepOptions) -> int:
    """Asks the process that runs the sweep to end, as Ctrl-C there does: the jobs that run save first.

    Raises:
        UserError: it runs on another machine, or is another user's.
    """
    console, holder = Console(), holder_of(folder)
    if submitted(ledger):
        return cancel_submitted(console, folder, ledger)
    if not is_locked(folder) or holder is None:
        console.row("cancel", f"nobody is running the sweep in {short(folder)}")
        return 0
    if not holder.lives:
        console.row("cancel", "the sweep is gone already; its last jobs are saving what they have")
        return 0
    holder.ask_to_end()
    console.row("cancel", f"process {holder.pid} is asked to end; the jobs that run save first")
    console.row("next", f"dumbo sweep wait {short(folder)}, then {go_on(folder)}")
    return 0


ACTIONS: dict[str, Callable[[Path, Ledger, SweepOptions], int]] = {"status": status, "wait": wait, "cancel": cancel}


def as_it_stands(folder: Path, ledger: Ledger) -> Ledger:
    """The ledger of a sweep that nobody runs: jobs that ran when it was killed are what their folders say."""
    seen = Ledger(ledger.path)
    metric = str(read_sweep(folder).get("metric", SweepOptions().metric))
    seen.take(
        replace(row, **ended(row, folder / row.name, metric, code=None, asked=None, seconds=0.0, said=""))
        if row.state == "running" and job_of(row) is None
        else row
        for row in ledger
    )
    return seen


def looked_at(folder: Path, row: Row) -> Progress:
    progress = Progress(folder / row.name)
    progress.new_rows()
    return progress


def told(folder: Path, ledger: Ledger, progress: dict[int, Progress], live: bool) -> dict[str, Any]:
    """For programs."""
    facts, holder = read_sweep(folder), holder_of(folder)
    jobs = []
    for row in ledger:
        at = progress.get(row.number)
        far = {"step": at.step, "total": at.total, "loss": at.loss, "seconds_left": at.seconds_left} if at else {}
        jobs.append({**asdict(row), **far})
    return {
        "sweep_dir": str(folder),
        "running": live,
        "process": holder.pid if live and holder is not None else None,
        "host": holder.host if live and holder is not None else None,
        **{key: facts.get(key) for key in ("launcher", "metric", "direction", "started", "swept", "fixed")},
        "counts": ledger.counts(),
        "jobs": jobs,
    }


def _said(folder: Path, live: bool, ledger: Ledger) -> str:
    holder = holder_of(folder)
    if live and holder is not None and holder.lives:
        return f"running (process {holder.pid}{'' if holder.here else f' on {holder.host}'})"
    if live:
        return "the sweep is gone, jobs of it are saving what they have"
    if submitted(ledger):
        return "jobs go on in SLURM, nobody watches them"
    if not is_over(folder, ledger):
        most = read_sweep(folder).get("planned")
        return f"not running, {len(ledger)} trials of {most} are begun" if most else "not running"
    return "all jobs are done" if all(row.state in ENDED for row in ledger) else "not running"


def is_over(folder: Path, ledger: Ledger) -> bool:
    """Whether no job is to come: there is one at least, and of a search as many as were planned."""
    return len(ledger) >= max(1, int(read_sweep(folder).get("planned") or 0))
