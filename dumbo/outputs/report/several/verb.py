"""`dumbo report SWEEP` and `dumbo report A B C`: page and tables written, the best of them told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dumbo.options import ReportOptions
from dumbo.outputs.console import Console
from dumbo.outputs.places import short
from dumbo.outputs.report.several.effects import effects
from dumbo.outputs.report.several.failures import failures
from dumbo.outputs.report.several.found import PAGE, found
from dumbo.outputs.report.several.jobs import Several
from dumbo.outputs.report.several.leaderboard import leaderboard, write_tables
from dumbo.outputs.report.several.page import headlines, page, sections
from dumbo.outputs.report.several.varied import Varied, shown, varied
from dumbo.outputs.report.values import cut, figure
from dumbo.outputs.report.verb import target_of
from dumbo.outputs.report.write import FILE, write_text

TOLD = 5


def report_several(paths: Sequence[str], chosen: ReportOptions) -> int | None:
    """Writes page, parquet and CSV. None: it is one run's folder, which has a page of another kind.

    Raises:
        UserError: a path that holds no run, files that cannot be written.
    """
    several = found(paths, chosen.metric, chosen.direction)
    if several is None:
        return None
    target = target_of(chosen.to, several.place / (FILE if several.is_sweep else PAGE))
    tables = write(several, target)
    if chosen.format == "json":
        print(json.dumps(facts_of(several, target, tables), ensure_ascii=True, default=str))
        return 0
    _say(several, target, tables)
    return 0


def write(several: Several, target: Path) -> list[Path]:
    """The page and the tables beside it."""
    keys = varied(several)
    stem = "leaderboard" if several.is_sweep else target.stem
    tables = write_tables(leaderboard(several, keys), target.parent, stem)
    write_text(page(several, keys, " and ".join(table.name for table in tables)), target)
    return tables


def _say(several: Several, target: Path, tables: list[Path]) -> None:
    console = Console()
    console.row("report", f"{short(target.absolute())}   {target.stat().st_size / 1e6:.1f} MB")
    console.row("", f"{short(tables[0].absolute())}, {tables[1].name}")
    done = sum(job.state == "done" for job in several.jobs)
    console.row("sweep" if several.is_sweep else "runs", f"{done:,} of {len(several.jobs):,} done")
    for number, job in enumerate(several.ranked()[:TOLD]):
        console.row("best" if number == 0 else "", f"{several.metric} {figure(job.result)}   {job.name}")
    for failure in failures(several)[:TOLD]:
        console.row(
            "not done",
            f"{len(failure.jobs):,} {failure.state}: {failure.names(6)}\n{cut(failure.first_line, 200)}".rstrip(),
        )
    for fault in several.faults[:TOLD]:
        console.row("", fault)
    if not console.fancy:
        console.plain(short(target.absolute()))


def facts_of(several: Several, target: Path, tables: list[Path]) -> dict[str, Any]:
    """What the page tells, for programs."""
    keys = varied(several)
    told = effects(several, keys, several.ordered())
    return {
        "report": str(target.absolute()),
        "tables": [str(table.absolute()) for table in tables],
        "metric": several.metric,
        "direction": "minimize" if several.minimize else "maximize",
        "headlines": {one.label: one.value for one in headlines(several)},
        "runs": [_run(several, keys, job) for job in several.ordered()],
        "effects": {
            one.varied.key: {
                "explains": one.share,
                "levels": [
                    {"value": level.label, "mean": level.mean.value, "error": level.mean.error, "low": level.mean.low,
                     "high": level.mean.high, "count": level.mean.count}
                    for level in one.levels
                ],
            }
            for one in told.each
        },
        "failures": [{"state": one.state, "runs": [job.name for job in one.jobs], "lines": one.lines} for one in failures(several)],
        "sections": {section.name: section.told() for section in sections(several)},
        "faults": several.faults,
    }  # fmt: skip


def _run(several: Several, keys: Sequence[Varied], job: Any) -> dict[str, Any]:
    place = next(number for number, one in enumerate(several.jobs) if one is job)
    values = {key.key: shown(key.values[place]) for key in keys}
    return {
        "run": job.name,
        "state": job.state,
        "result": job.result,
        "varied": values,
        "metrics": dict(job.metrics.values),
    }
