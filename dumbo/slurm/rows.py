"""The ledger's rows of jobs in SLURM, from what is on disk and in the queue. Nothing here starts or ends a job.

run.json says whether a run is finished; the job's note (`note.py`) how often it began and how it ended; SLURM whether it waits
or runs, and how it ended when it could not say it itself. Whoever asks, and when, finds the same.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dumbo.errors import UserError
from dumbo.launch.processes import alive
from dumbo.outputs.places import now, short
from dumbo.outputs.printable import printable
from dumbo.outputs.runs import facts_if_whole, is_claimed
from dumbo.slurm.note import Note
from dumbo.slurm.queue import Queued, cancel, jobs_of_scripts, queued
from dumbo.sweep.ledger import Ledger, Row, State
from dumbo.sweep.options import SweepOptions
from dumbo.sweep.outcome import INTERRUPTED, LAST_LINES, LONGEST_ERROR, end_of_log, result_of

DEVICE, LOCAL = "slurm ", "submitit "
"""What stands before a job's number in a row's `device`: SLURM's, or that of submitit's process on this machine."""
JOB = re.compile(rf"(?:{DEVICE}|{LOCAL})(\d+(?:_\d+)?)", re.ASCII)
"""Nothing else: it becomes a word of scancel's."""
SUBMITIT = ".submitit"
"""Folder in the sweep's: what submitit and the jobs' notes need."""
LOST = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REVOKED")
"""Ends that are no fault of the job."""
LIVE: tuple[State, ...] = ("waiting", "running")


def job_of(row: Row) -> str | None:
    """The number of a row's job, as 12_3; None: it was not submitted."""
    found = JOB.fullmatch(str(row.device))
    return found[1] if found is not None else None


def in_slurm(row: Row) -> bool:
    """Whether a row's job is, or was, SLURM's."""
    return str(row.device).startswith(DEVICE)


def note_file(folder: Path, name: str) -> Path:
    """Where a job's note lies."""
    return folder / SUBMITIT / f"{name}.json"


def submitted(ledger: Ledger) -> list[Row]:
    """Rows whose jobs SLURM has, as far as the ledger knows."""
    return [row for row in ledger.in_state(*LIVE) if job_of(row) is not None]


def refresh(
    folder: Path, ledger: Ledger, metric: str, *, write: bool = True, pruned: Collection[int] = ()
) -> list[tuple[Row, Row]]:
    """Brings the rows of jobs that were submitted up to date.

    Args:
        folder: the sweep's.
        metric: the sweep's, a key of run.json's metrics.
        write: into the ledger's file too; else in memory alone.
        pruned: numbers of jobs that were ended because a search does not want them any more.

    Returns:
        the rows that changed, as they were and as they are.

    Raises:
        OSError, subprocess.TimeoutExpired: SLURM does not answer.
    """
    rows = submitted(ledger)
    known = queued(str(job_of(row)) for row in rows if in_slurm(row))
    known.update(_here(row) for row in rows if not in_slurm(row))
    found = [(row, _now(row, folder, known.get(str(job_of(row))), metric)) for row in rows]
    changed = [
        (
            row,
            replace(new, state="pruned", error=None)
            if row.number in pruned and new.state not in (*LIVE, "done")
            else new,
        )
        for row, new in found
        if new != row
    ]
    (ledger.put if write else ledger.take)(new for _, new in changed)
    return changed


def taken_up(folder: Path, ledger: Ledger, options: SweepOptions, *, submits: bool) -> None:
    """Before a sweep is gone on with: what became of the jobs that an earlier invocation submitted.

    Args:
        submits: whether the launcher is one of submitit's.

    Raises:
        UserError: jobs are in SLURM, and this machine cannot ask it, or the launcher is another one.
    """
    try:
        _adopt(folder, ledger)
        _give_up_unknown(folder, ledger)
        if not submitted(ledger):
            return
        refresh(folder, ledger, options.metric)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"sweep_dir: jobs of {short(folder)} are in SLURM, which does not answer here: {error}.\n"
            "  Write the same where squeue works."
        ) from error
    if (left := submitted(ledger)) and not submits:
        raise UserError(
            f"sweep_dir: {len(left)} jobs of {short(folder)} are in SLURM.\n"
            f"  dumbo sweep wait {short(folder)}, or dumbo sweep cancel {short(folder)}; or write hydra/launcher=submitit_slurm"
        )


def _adopt(folder: Path, ledger: Ledger) -> None:
    """Jobs that began, and that the ledger does not know of: who submitted them was killed a moment later."""
    notes = {
        row.number: Note.read(note_file(folder, row.name)) for row in ledger.in_state("waiting") if job_of(row) is None
    }
    begun = {
        number: note.job for number, note in notes.items() if note.job.replace("_", "").isdigit() and note.code is None
    }
    if begun and shutil.which("scontrol") is not None:
        known = queued(begun.values())
        live = {number: job for number, job in begun.items() if job in known and not known[job].over}
        ledger.put(replace(ledger[number], device=f"{DEVICE}{job}") for number, job in live.items())


def _give_up_unknown(folder: Path, ledger: Ledger) -> None:
    """Jobs of this sweep in the queue that have not begun, and that no row knows: they would run beside those of their rows."""
    scripts = folder / SUBMITIT
    if not len(ledger) or not scripts.is_dir() or shutil.which("squeue") is None:
        return
    known = {job_of(row) for row in ledger}
    cancel([job for job in jobs_of_scripts(scripts) if job not in known])


def _here(row: Row) -> tuple[str, Queued]:
    """What the system knows of a job that submitit runs on this machine."""
    job = str(job_of(row))
    return job, Queued("RUNNING") if runs_here(int(job)) else Queued("FAILED")


def runs_here(pid: int) -> bool:
    """Whether a process is still the one that submitit started: numbers are given out again."""
    with suppress(OSError):
        return alive(pid) and b"submitit" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return alive(pid) and not Path("/proc/self").exists()


def _look_again(*folders: Path) -> None:
    """Makes a network file system ask its server what is in them: the job that is over wrote there a moment ago, elsewhere."""
    for folder in folders:
        with suppress(OSError):
            folder.chmod(folder.stat().st_mode)


def _now(row: Row, folder: Path, found: Queued | None, metric: str) -> Row:
    job, run = str(job_of(row)), folder / row.name
    if found is None or found.over:
        _look_again(folder / SUBMITIT, run)
    note = Note.read(note_file(folder, row.name))
    began, facts = note.job == job, facts_if_whole(run)
    row = replace(row, config_hash=facts.get("config_hash", row.config_hash))
    if began:
        row = replace(row, attempt=note.attempt, started=row.started or note.began, seconds=note.seconds)
    ended = began and note.code is not None and not note.next
    going_back = began and note.next and found is not None and not found.over
    if going_back or (found is not None and found.waits):
        return replace(row, state="waiting")
    unsure = not ended or note.code in INTERRUPTED  # SLURM knows whether it was cancelled, once it is over
    if (found is not None and found.runs and unsure) or (found is None and not ended and is_claimed(run)):
        return replace(row, state="running")
    code = note.code if ended else found.code if found is not None else None
    row = replace(row, ended=note.ended if ended else now(), exit_code=code)
    if facts.get("status") == "finished" and code in (0, None):
        metrics = facts.get("metrics") or {}
        return replace(row, state="done", exit_code=0, metrics=metrics, result=result_of(metrics, metric), error=None)
    state, why = _how(found, facts, note if ended else Note(), code)
    told = "\n".join([*why, *last_words(folder, row, job)])
    return replace(row, state=state, error=printable(told, keep="\n")[-LONGEST_ERROR:] or None)


def _how(found: Queued | None, facts: dict[str, Any], note: Note, code: int | None) -> tuple[State, list[str]]:
    """The state of a job that is over and not finished, and what is known of why."""
    told = [note.said] if note.said else []
    if found is not None and found.state == "CANCELLED":
        return "cancelled", []
    if found is None and code is None:
        return "interrupted", ["SLURM does not know the job any more, and it left no word"]
    if code == 0 and facts.get("status") == "preempted":
        return "interrupted", [str(facts.get("error"))]
    if code == 0:
        told.append(f"its job ended with exit code 0, and the run's status is {facts.get('status', 'unknown')}")
    told += [f"ended by {one.name}" for one in signal.Signals if code == 128 + one]
    if found is not None and found.over and found.state not in ("COMPLETED", "FAILED"):
        told.append(f"SLURM: {found.state}" + (f" ({found.reason})" if found.reason else ""))
    lost = found is not None and found.state in LOST
    return ("interrupted" if lost or code in INTERRUPTED else "failed"), told


def last_words(folder: Path, row: Row, job: str) -> list[str]:
    """The last lines of what a job printed; where it printed nothing, of what SLURM and submitit say of it."""
    places = (folder / f"{row.name}.log", *(folder / SUBMITIT / f"{job}_0_log.{end}" for end in ("err", "out")))
    for file in places:
        if said := [line.rstrip() for line in end_of_log(file).split("\n") if line.strip()]:
            return said[-LAST_LINES:]
    return []
