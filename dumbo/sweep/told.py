"""What a sweep says at its start and its end, also to whoever asks later (`dumbo sweep status`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dumbo.outputs.console import Console
from dumbo.outputs.places import short, typed
from dumbo.sweep.ledger import ENDED, Row

TOLD = 20
"""Jobs that are named at the end; the ledger has them all."""


def say_begin(console: Console, folder: Path, rows: Sequence[Row], left: Sequence[Row], at_once: int) -> None:
    """How many jobs there are, how many of them are left."""
    told = [f"{len(rows) - len(left)} done already"] if len(left) < len(rows) else []
    again = sum(row.attempt > 0 for row in left)
    told += [f"{again} go on from where they were"] if again else []
    told += [f"{at_once} at once"] if at_once > 1 and left else []
    console.row("sweep", f"{counted(len(rows), 'job')} in {short(folder)}{': ' if told else ''}{', '.join(told)}")


def say_faults(console: Console, faults: Mapping[str, str], *, sure: bool) -> None:
    """Jobs that are going to fail, before the first one runs; `sure`: not only as far as this machine can tell."""
    for number, (name, fault) in enumerate(list(faults.items())[:TOLD]):
        said = "\n".join(f"  {line}" for line in fault.split("\n"))
        console.row(
            "faults" if number == 0 else "", f"{name} {'is going to fail' if sure else 'would fail here'}:\n{said}"
        )


def say_stopped(console: Console, folder: Path, rows: Sequence[Row], name: str) -> None:
    """After a signal: which jobs have saved, how many are left."""
    saved = [
        row.name for row in rows if row.state == "interrupted" and any((folder / row.name).glob("checkpoints/step-*"))
    ]
    left = sum(row.state not in ENDED for row in rows)
    kept = f"; saved: {', '.join(saved)}" if saved else ""
    console.row("stopped", f"{name}: {left} of {counted(len(rows), 'job')} are left{kept}\nGo on: {go_on(folder)}")


def say_end(console: Console, folder: Path, rows: Sequence[Row], metric: str, direction: str) -> bool:
    """The best job, those that failed with their last lines, those that are left; returns whether all are done."""
    _say_best(console, rows, metric, direction)
    failed = [row for row in rows if row.state == "failed"]
    left = [row for row in rows if row.state not in (*ENDED, "failed")]
    for number, row in enumerate(failed[:TOLD]):
        attempts = f", {row.attempt} attempts" if row.attempt > 1 else ""
        said = "\n".join(f"  {line}" for line in (row.error or "").split("\n"))
        head = f"{row.name}   exit code {row.exit_code}{attempts}   {short(folder / row.name)}.log"
        console.row("failures" if number == 0 else "", f"{head}\n{said}")
    if failed:
        console.row("failed", f"{len(failed)} of {len(rows)}: {_listed([row.name for row in failed])}")
    if left:
        console.row("left", f"{len(left)} of {len(rows)}: {_listed([f'{row.name} ({row.state})' for row in left])}")
    return not failed and not left


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:TOLD]) + (", …" if len(names) > TOLD else "")


def _say_best(console: Console, rows: Sequence[Row], metric: str, direction: str) -> None:
    done = [row for row in rows if row.state == "done"]
    found = [(row.result, row.name) for row in done if row.result is not None]
    if found:
        value, name = (min if direction == "minimize" else max)(found)
        same = [other for result, other in found if other != name and f"{result:.4f}" == f"{value:.4f}"]
        tied = f"   (no better than {_listed(same)}, to these digits)" if same else ""
        console.row("best", f"{name}  {metric} {value:.4f}{tied}")
    elif done:
        console.row("best", f"no job has {metric}: name another metric of run.json with sweep.metric=…")


def go_on(folder: Path) -> str:
    """The command that goes on with a sweep."""
    return f"python -m dumbo -m {typed('sweep_dir', folder)}"


def counted(number: int, what: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number:,} {what}{'s' * (number != 1)}"
