"""The end of a sweep: what is left is run, how it went is said, with the command that comes next."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from dumbo.outputs.places import short
from dumbo.slurm.rows import submitted
from dumbo.sweep.ledger import ENDED
from dumbo.sweep.outcome import FOR_THE_USER
from dumbo.sweep.told import counted, go_on, say_end

if TYPE_CHECKING:
    from dumbo.sweep.runner import Runner
    from dumbo.sweep.sweep import Sweep


def finish(runner: Runner) -> int:
    """Says how it went; 1 when a job is not done."""
    runner.run_what_is_left()
    sweep = runner.sweep
    rows = [sweep.ledger[number] for number in runner.asked]
    if sweep.options.detach:
        return _leave(sweep)
    well = say_end(sweep.console, sweep.folder, rows, sweep.options.metric, sweep.options.direction)
    if any(row.state not in sweep.final and row.exit_code not in FOR_THE_USER for row in rows):
        sweep.console.row("next", f"{go_on(sweep.folder)}   (jobs go on from their checkpoints)")
    if any(row.state in ENDED for row in rows):
        sweep.console.row("report", f"dumbo report {shlex.quote(short(sweep.folder))}")
    if not sweep.console.fancy:
        sweep.console.plain(str(sweep.folder))
    return 0 if well else 1


def _leave(sweep: Sweep) -> int:
    """After `sweep.detach=true`: how to come back."""
    left = submitted(sweep.ledger)
    sweep.console.row("detached", f"{counted(len(left), 'job')}, which nobody need watch")
    sweep.console.row(
        "next", "\n".join(f"dumbo sweep {what} {short(sweep.folder)}" for what in ("status", "wait", "cancel"))
    )
    if not sweep.console.fancy:
        sweep.console.plain(str(sweep.folder))
    return 0
