"""`dumbo report run=last`: one run as one HTML page.

run= is the single way in, and names one run; a comparison of several comes later.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dumbo.errors import UserError
from dumbo.options import Options, ReportOptions
from dumbo.outputs.console import Console
from dumbo.outputs.places import short, typed
from dumbo.outputs.report.folder import Folder, read
from dumbo.outputs.report.write import FILE, write_page
from dumbo.outputs.runs import find_run

LISTED = 5


def report(options: Options, chosen: ReportOptions) -> int:
    """Writes the page and says where it is.

    Raises:
        UserError: no such run, a sweep's folder, a page that cannot be written.
    """
    if options.run not in (None, "last"):
        refuse_sweep(Path(options.run).expanduser())
    folder = find_run(options.run)
    run = read(folder.absolute())
    target = _target(chosen.to, folder)
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


def refuse_sweep(folder: Path) -> None:
    """Says which runs there are in the folder of a sweep, or of anything that holds several.

    Raises:
        UserError: it is such a folder.
    """
    if (folder / "run.json").is_file() or not folder.is_dir():
        return
    runs = sorted({file.parent for pattern in ("*/run.json", "*/*/run.json") for file in folder.glob(pattern)})
    if not runs:
        return
    listed = "\n".join(f"  python -m dumbo report {typed('run', run.absolute())}" for run in runs[:LISTED])
    more = f"\n  … and {len(runs) - LISTED:,} more" if len(runs) > LISTED else ""
    raise UserError(
        f"run: '{folder}' holds {len(runs):,} run{'s' * (len(runs) != 1)} (a sweep's folder?); a report is of one run. "
        f"Write one of\n{listed}{more}"
    )


def _target(asked: str | None, folder: Path) -> Path:
    """Where the page goes."""
    if asked is None:
        return folder / FILE
    target = Path(asked).expanduser()
    if target.is_dir():
        return target / FILE
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
        "sections": {
            section.name: [
                {"caption": table.caption, "head": table.head, "rows": [row.cells for row in table.rows]}
                for table in section.tables
                if table.rows
            ]
            for section in sections(run)
        },
        "faults": run.faults,
    }
