"""`dumbo report run=last`, `dumbo report SWEEP`, `dumbo report A B C`: a run, a sweep, or several runs as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dumbo.errors import UserError
from dumbo.options import Options, ReportOptions
from dumbo.outputs.console import Console
from dumbo.outputs.places import short
from dumbo.outputs.report.folder import Folder, read
from dumbo.outputs.report.several.places import is_sweep
from dumbo.outputs.report.write import FILE, write_page
from dumbo.outputs.runs import find_run


def report(options: Options, chosen: ReportOptions, paths: Sequence[str] = ()) -> int:
    """Writes the page and says where it is.

    Args:
        paths: folders of runs or of a sweep, typed behind the verb; none: `run=` says which.

    Raises:
        UserError: no such run, a page that cannot be written.
    """
    if paths and options.run is not None:
        raise UserError(
            f"report: {paths[0]} and run={options.run} are both typed.\n  Name all folders behind report, or one run with run=."
        )
    named = [*paths, *([options.run] if options.run is not None else [])]
    if paths or (named and is_sweep(Path(named[0]).expanduser())):
        from dumbo.outputs.report.several.verb import report_several

        if (code := report_several(named, chosen)) is not None:
            return code
    folder = find_run(paths[0] if paths else options.run)
    run = read(folder.absolute())
    target = target_of(chosen.to, folder / FILE)
    write_page(run, target)
    if chosen.format == "json":
        print(json.dumps(facts_of(run, target), ensure_ascii=True, default=str))
        return 0
    console = Console()
    console.row("report", f"{short(target.absolute())}   {target.stat().st_size / 1e6:.1f} MB")
    told = f"{run.facts.text('name') or folder.name}   {run.status}   step {run.numbers.last_step():,}"
    console.row("run", told)
    for fault in run.faults:
        console.row("", fault)
    if not console.fancy:
        console.plain(short(target.absolute()))
    return 0


def target_of(asked: str | None, usual: Path) -> Path:
    """Where a page goes.

    Args:
        asked: report.to, a file or a folder; None: the usual place.
    """
    if asked is None:
        return usual
    target = Path(asked).expanduser()
    if target.is_dir():
        return target / usual.name
    if not target.parent.is_dir():
        raise UserError(
            f"report.to: there is no folder '{target.parent}'.\n  Make it, or write report.to=FILE for another place."
        )
    return target


def facts_of(run: Folder, target: Path) -> dict[str, Any]:
    """What the page tells, for programs: the sections as tables, curves as their words."""
    from dumbo.outputs.report.charts import drawn
    from dumbo.outputs.report.page import sections
    from dumbo.outputs.report.results import headlines

    return {
        "run": str(run.path),
        "report": str(target.absolute()),
        "status": run.status,
        "error": run.facts.text("error"),
        "headlines": {one.label: one.value for one in headlines(run)},
        "curves": {one.chart.name: one.told for one in drawn(run.numbers)},
        "spikes": run.numbers.spikes,
        "skipped_steps": run.numbers.skipped,
        "samples": [{"source": sample.source, **sample.texts} for sample in run.samples],
        "sections": {section.name: section.told() for section in sections(run)},
        "faults": run.faults,
    }
