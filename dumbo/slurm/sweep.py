"""A sweep in SLURM: its jobs are submitted, and watched until they are over; whoever watches may go.

rows -> tasks (words of `python -m dumbo train`) -> arrays, one for each number of nodes -> the ledger names their jobs
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dumbo.errors import RunFailed
from dumbo.outputs.places import short
from dumbo.slurm.submit import checked_parameters, submit
from dumbo.slurm.task import Task
from dumbo.slurm.watch import DEVICE, LOCAL, note_file, refresh, submitted
from dumbo.sweep.ledger import Ledger, Row

LOOK, LOOKS_AT_SLURM = 1.0, 10.0
"""Seconds between looks at the jobs' notes, and at SLURM's queue at the latest."""
JOBS_A_SECOND = 100
"""Notes of so many jobs are looked at in a second."""
SILENT = 600.0
"""Seconds that SLURM may not answer before watching is given up."""


def submit_jobs(
    folder: Path,
    ledger: Ledger,
    jobs: Sequence[tuple[Row, Sequence[str], int]],
    parameters: Mapping[str, Any],
    cluster: str,
    retries: int,
) -> list[Row]:
    """Puts jobs into the queue and their numbers into the ledger.

    Args:
        folder: the sweep's.
        jobs: (row, words of `python -m dumbo` with run_dir and resume, nodes).
        parameters: of hydra.launcher.
        cluster: "slurm" or "local".
        retries: how often each may fail and be started again.

    Returns:
        their rows.

    Raises:
        UserError: a parameter is wrong, or SLURM does not take them.
    """
    checked = checked_parameters(parameters, cluster)
    found: list[Row] = []
    for nodes in sorted({nodes for _, _, nodes in jobs}):
        chosen = [(row, words) for row, words, wanted in jobs if wanted == nodes]
        tasks = [_task(folder, row, words, checked, retries) for row, words in chosen]
        numbers = submit(tasks, nodes, checked, Path(checked["submitit_folder"]), cluster)
        device = DEVICE if cluster == "slurm" else LOCAL
        rows = [_submitted(row, f"{device}{number}") for (row, _), number in zip(chosen, numbers, strict=True)]
        ledger.put(rows)
        found += rows
    return found


def _task(folder: Path, row: Row, words: Sequence[str], parameters: Mapping[str, Any], retries: int) -> Task:
    return Task(
        words=tuple(words),
        run_dir=str(folder / row.name),
        log=str(folder / f"{row.name}.log"),
        note=str(note_file(folder, row.name)),
        time_limit=60.0 * parameters["timeout_min"],
        warning=float(parameters["signal_delay_s"]),
        max_timeouts=parameters["max_num_timeout"],
        retries=retries,
    )


def _submitted(row: Row, device: str) -> Row:
    return replace(row, state="waiting", device=device, ended=None, exit_code=None, error=None)


def watch(folder: Path, ledger: Ledger, metric: str, tell: Callable[[Row], None]) -> None:
    """Keeps the ledger up to date until every job that was submitted is over.

    Args:
        folder: the sweep's.
        metric: the sweep's.
        tell: called with each row that changed.

    Raises:
        RunFailed: SLURM has not answered for a long time.
    """
    looked, answered = -LOOKS_AT_SLURM, time.monotonic()
    before: dict[int, int] = {}
    while rows := submitted(ledger):
        stamps = {row.number: _stamp(note_file(folder, row.name)) for row in rows}
        if stamps != before or time.monotonic() - looked >= LOOKS_AT_SLURM:
            looked, before = time.monotonic(), stamps
            try:
                changed = refresh(folder, ledger, metric)
            except (OSError, subprocess.SubprocessError) as error:
                if time.monotonic() - answered > SILENT:
                    raise RunFailed(
                        f"SLURM has not answered for {SILENT / 60:g} minutes: {error}\n"
                        f"  The jobs go on. Watch them again: dumbo sweep wait {short(folder)}"
                    ) from error
                changed = []
            else:
                answered = time.monotonic()
            for row in changed:
                tell(row)
        if submitted(ledger):
            time.sleep(max(LOOK, len(rows) / JOBS_A_SECOND))


def _stamp(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
