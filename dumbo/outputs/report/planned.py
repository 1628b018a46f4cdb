"""What was planned beside what was measured."""

from __future__ import annotations

from typing import Any

from dumbo.outputs.report.folder import Folder
from dumbo.outputs.report.reading import as_number
from dumbo.outputs.report.results import took_of
from dumbo.outputs.report.tables import MOST_ROWS, Row, Section, Table, leaves_of, spoken
from dumbo.outputs.report.values import duration, figure, plain


def plan(run: Folder) -> Section:
    """run.json's `plan` (what `dumbo plan` foretells) and `planned_steps`, each beside its measured counterpart."""
    told = dict(leaves_of(run.facts.at("plan").values))
    if "steps" not in told and (steps := run.facts.number("planned_steps")) is not None:
        told = {"steps": steps, **told}
    measured = _measured(run)
    pairs, rest = [], []
    for name, value in list(told.items())[:MOST_ROWS]:
        number, found = as_number(value), measured.get(name.rpartition(".")[2])
        if number is not None and found is not None:
            pairs.append(_pair(name, number, found))
        elif value is not None:
            rest.append(Row((spoken(name), plain(value))))
    tables = (
        Table("Planned and measured", pairs, ("what", "planned", "measured", "difference"), numbers=(1, 2, 3)),
        Table("Planned besides", rest),
    )
    return Section("plan", "Plan and what came of it", tables if pairs or rest else ())


def _measured(run: Folder) -> dict[str, float | int]:
    found: dict[str, Any] = {name: as_number(value) for name, value in run.facts.at("metrics").values.items()}
    found["steps"] = found.get("steps") or run.numbers.last_step() or None
    found["seconds"] = took_of(run)
    found.setdefault("peak_memory_gib", run.numbers.last("peak_memory_gib"))
    return {name: value for name, value in found.items() if value is not None}


def _pair(name: str, planned: float, measured: float) -> Row:
    shown = duration if name.rpartition(".")[2] in ("seconds", "save_seconds") else figure
    off = f"{100 * (measured - planned) / planned:+.1f}%" if planned else figure(measured - planned)
    return Row((spoken(name), shown(planned), shown(measured), "none" if measured == planned else off))
