"""The rows of a sweep's jobs when it is begun or gone on with: which are there, which are new, what became of those that ran.

A job is the same job when its own (swept) words are equal, whatever their order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dumbo.outputs.runs import facts_if_whole, is_claimed
from dumbo.outputs.secrets import masked_words
from dumbo.slurm.rows import job_of
from dumbo.sweep.ledger import Ledger, Row
from dumbo.sweep.outcome import ended, result_of
from dumbo.sweep.typed import suffix


def assigned(ledger: Ledger, jobs: Sequence[Sequence[str]], *, all_vary: bool = False) -> list[Row]:
    """The row of each job; jobs that are new get one, with the next number.

    Args:
        jobs: each one's own words.
        all_vary: name folders for all of these words, also those that are the same in all of these jobs.
    """
    masked = [masked_words(words) for words in jobs]
    common = set.intersection(*map(set, masked)) if len(masked) > 1 else set(masked[0]) if masked else set()
    if all_vary:
        common = set()
    found = ledger.matching(masked)
    number, new, rows = ledger.next_number, [], []
    for words, row in zip(masked, found, strict=True):
        if row is None:
            name = f"{number:03d}{suffix([word for word in words if word not in common])}"
            row = Row(number=number, name=name, overrides=words)
            new.append(row)
            number += 1
        rows.append(row)
    ledger.put(new)
    return rows


def settle(ledger: Ledger, folder: Path, metric: str, waiting: Callable[[str], None]) -> list[Row]:
    """What became of the jobs that ran when a sweep died: their run's folders tell, once nobody holds them.

    Returns:
        their rows, as they are now: done, or interrupted.
    """
    measured_by(ledger, metric)
    settled = []
    for row in ledger.in_state("running"):
        if job_of(row) is not None:  # it did not run in that sweep's process
            continue
        run = folder / row.name
        if is_claimed(run):
            waiting(f"{row.name} is still running; it is waited for")
            while is_claimed(run):
                time.sleep(0.2)
        seconds = (facts_if_whole(run).get("metrics") or {}).get("seconds")
        took = float(seconds) if isinstance(seconds, int | float) else 0.0
        changes = ended(row, run, metric, code=None, asked=None, seconds=took, said="")
        settled.append(ledger.change(row.number, **changes))
    return settled


def begun_anew(ledger: Ledger, folder: Path, rows: Sequence[Row]) -> list[Row]:
    """Rows whose runs cannot be gone on with (their config changed): what there is of them is moved aside, not deleted."""
    anew = []
    for row in rows:
        run = folder / row.name
        if run.exists():
            place = next(path for n in range(1, 1000) if not (path := run.with_name(f"{row.name}.before-{n}")).exists())
            run.rename(place)
        anew.append(
            ledger.change(
                row.number, state="waiting", config_hash="", seconds=0.0, error=None, exit_code=None, device=None
            )
        )
    return anew


def measured_by(ledger: Ledger, metric: str) -> None:
    """Takes the results from another metric, where one is named when a sweep is gone on with."""
    found = [(row, result_of(row.metrics, metric)) for row in ledger.in_state("done")]
    ledger.put(replace(row, result=value) for row, value in found if value != row.result)
