"""What `dumbo sweep status|wait|cancel` does for jobs in SLURM: nobody need run the sweep for them to go on and be known."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from dumbo.errors import UserError
from dumbo.outputs.console import Console
from dumbo.outputs.places import short
from dumbo.slurm.pool import cancel_jobs
from dumbo.slurm.rows import refresh, submitted
from dumbo.slurm.watch import LOOKS_AT_SLURM, Told, stoppable, watch
from dumbo.sweep.folder import SweepLock, holder_of, is_locked, read_sweep
from dumbo.sweep.ledger import Ledger
from dumbo.sweep.options import SweepOptions
from dumbo.sweep.told import counted

SECONDS_TO_END = 30.0
"""A process that is asked to end has so long."""


def up_to_date(folder: Path, ledger: Ledger) -> Ledger:
    """The ledger with what became of the jobs that were submitted; one that somebody watches is up to date.

    Raises:
        UserError: SLURM does not answer.
    """
    if not submitted(ledger) or is_locked(folder):
        return ledger
    lock = SweepLock(folder)
    try:
        lock.take(lambda text: None)
    except UserError:  # somebody else writes it at this moment, or it is another user's: seen all the same
        return _asked(folder, ledger, write=False)
    try:
        return _asked(folder, Ledger.open(folder), write=True)
    finally:
        lock.release()


def _asked(folder: Path, ledger: Ledger, *, write: bool) -> Ledger:
    try:
        refresh(folder, ledger, _metric(folder), write=write)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"sweep: jobs of {short(folder)} are in SLURM, which does not answer here: {error}.\n"
            "  Write the same where squeue works."
        ) from error
    return ledger


def watched(folder: Path, ledger: Ledger) -> bool:
    """Watches the jobs that were submitted until all are over; whether there were any.

    Raises:
        Stopped: by a signal; the jobs go on.
    """
    if not submitted(ledger):
        return False
    lock = SweepLock(folder)
    try:
        lock.take(lambda text: None)
    except UserError:  # another one watches since a moment ago, or it is another user's
        if not is_locked(folder):
            time.sleep(LOOKS_AT_SLURM)
        return bool(submitted(up_to_date(folder, Ledger.open(folder))))
    try:
        ledger, console = Ledger.open(folder), Console()
        console.row("sweep", f"{counted(len(submitted(ledger)), 'job')} of {short(folder)} in SLURM")
        with stoppable(console, folder):
            watch(folder, ledger, _metric(folder), Told(console))
        ledger.compact()
    finally:
        lock.release()
    return True


def cancel_submitted(console: Console, folder: Path, ledger: Ledger) -> int:
    """Ends the jobs that were submitted; the exit code.

    Raises:
        UserError: SLURM would not.
    """
    if read_sweep(folder).get("sweeper") == "optuna":
        ledger = _without_new_trials(folder, ledger)
    rows = cancel_jobs(ledger)
    running = sum(row.state == "running" for row in rows)
    saving = f"; {running} of them run and save first" if running else ""
    console.row("cancel", f"{counted(len(rows), 'job')} in SLURM: taken out of the queue{saving}")
    console.row("next", f"dumbo sweep wait {short(folder)}")
    return 0


def _without_new_trials(folder: Path, ledger: Ledger) -> Ledger:
    """Ends the process that asks for a trial where one has ended; the ledger as it leaves it.

    Raises:
        UserError: it runs on another machine, or is another user's.
    """
    holder, end = holder_of(folder), time.monotonic() + SECONDS_TO_END
    if not is_locked(folder) or holder is None or not holder.lives:
        return ledger
    holder.ask_to_end()
    while is_locked(folder) and time.monotonic() < end:
        time.sleep(0.1)
    return Ledger.open(folder)


def _metric(folder: Path) -> str:
    return str(read_sweep(folder).get("metric", SweepOptions().metric))
