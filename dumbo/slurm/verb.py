"""What `dumbo sweep status|wait|cancel` does for jobs in SLURM: nobody need run the sweep for them to go on and be known."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dumbo.errors import UserError
from dumbo.options import SweepOptions
from dumbo.outputs.console import Console
from dumbo.outputs.places import short
from dumbo.slurm.pool import cancel_jobs
from dumbo.slurm.rows import refresh, submitted
from dumbo.slurm.watch import Told, stoppable, watch
from dumbo.sweep.folder import SweepLock, is_locked, read_sweep
from dumbo.sweep.ledger import Ledger
from dumbo.sweep.told import counted


def up_to_date(folder: Path, ledger: Ledger) -> Ledger:
    """The ledger with what became of the jobs that were submitted; one that somebody watches is up to date.

    Raises:
        UserError: SLURM does not answer.
    """
    if not submitted(ledger) or is_locked(folder):
        return ledger
    with _held(folder):
        ledger = Ledger.open(folder)
        try:
            refresh(folder, ledger, _metric(folder))
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
        UserError: somebody else watches them since a moment ago.
    """
    if not submitted(ledger):
        return False
    console = Console()
    with _held(folder):
        ledger = Ledger.open(folder)
        console.row("sweep", f"{counted(len(submitted(ledger)), 'job')} of {short(folder)} in SLURM")
        with stoppable(console, folder):
            watch(folder, ledger, _metric(folder), Told(console))
        ledger.compact()
    return True


def cancel_submitted(console: Console, folder: Path, ledger: Ledger) -> int:
    """Ends the jobs that were submitted; the exit code.

    Raises:
        UserError: SLURM would not.
    """
    rows = cancel_jobs(ledger)
    running = sum(row.state == "running" for row in rows)
    saving = f"; {running} of them run and save first" if running else ""
    console.row("cancel", f"{counted(len(rows), 'job')} in SLURM: taken out of the queue{saving}")
    console.row("next", f"dumbo sweep wait {short(folder)}")
    return 0


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    lock = SweepLock(folder)
    lock.take(lambda text: None)
    try:
        yield
    finally:
        lock.release()


def _metric(folder: Path) -> str:
    return str(read_sweep(folder).get("metric", SweepOptions().metric))
