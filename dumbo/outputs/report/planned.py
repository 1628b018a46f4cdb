"""What was planned beside what was measured: run.json's `plan` (`dumbo/plan/noted.py`) or plan.json, `planned_steps`, and
the micro batch that was chosen by memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dumbo.outputs.report.folder import Folder
from dumbo.outputs.report.reading import Facts, as_number
from dumbo.outputs.report.results import took_of
from dumbo.outputs.report.tables import MOST_ROWS, Row, Section, Table, leaves_of, spoken
from dumbo.outputs.report.values import duration, figure, gibibytes, plain

SAID_ELSEWHERE = ("model", "patches", "data", "batch", "config_hash")
"""Parts of a plan that the page shows as they came to be."""
BYTES = ("memory.", "disk.", "limit")
NO_BYTES = ("memory.device", "memory.fits", "memory.measured.largest", "disk.kept", "disk.fits")


def plan(run: Folder) -> Section:
    """Each planned number beside its measured counterpart; then what was planned besides."""
    told = dict(leaves_of({key: value for key, value in run.plan.values.items() if key not in SAID_ELSEWHERE}))
    if "steps" not in told and (steps := run.facts.number("planned_steps")) is not None:
        told = {"steps": steps, **told}
    chosen = run.facts.at("micro_batch")
    if "memory.peak" not in told and (peak := chosen.number("tried", str(run.facts.get("batch", "micro")))) is not None:
        told["memory.peak"] = peak
    measured = _measured(run)
    pairs, rest = [], []
    for name, value in list(told.items())[:MOST_ROWS]:
        number, found = as_number(value), measured.get(name, measured.get(name.rpartition(".")[2]))
        if number is not None and found is not None:
            pairs.append(_pair(name, number, found))
        elif value is not None:
            rest.append(Row((spoken(name), gibibytes(value) if _in_bytes(name) else plain(value))))
    tables = (
        Table("Planned and measured", pairs, ("what", "planned", "measured", "difference"), numbers=(1, 2, 3)),
        Table("Planned besides", rest),
        _chosen(chosen),
    )
    return Section("plan", "Plan and what came of it", tables)


def _measured(run: Folder) -> dict[str, float | int]:
    found: dict[str, Any] = {name: as_number(value) for name, value in run.facts.at("metrics").values.items()}
    found["steps"] = found.get("steps") or run.numbers.last_step() or None
    found["seconds"] = took_of(run)
    if (tokens := found.get("tokens")) and (speed := found.get("tokens_per_s")):
        found["time.seconds"] = tokens / speed  # of training alone, which is what was planned
    if found.get("peak_memory_gib") is None:
        found["peak_memory_gib"] = run.numbers.last("peak_memory_gib")
    if (peak := found["peak_memory_gib"]) is not None:
        before = run.plan.number("memory", "before") or 0  # on a CPU, of the process
        found["memory.peak"] = peak * 2**30 - before
    return {name: value for name, value in found.items() if value is not None}


def _in_bytes(name: str) -> bool:
    return name.startswith(BYTES) and not name.startswith(NO_BYTES)


def _pair(name: str, planned: float, measured: float) -> Row:
    shown = gibibytes if _in_bytes(name) else duration if name.rpartition(".")[2] in ("seconds", "save_seconds") else figure  # fmt: skip
    off = f"{100 * (measured - planned) / planned:+.1f}%" if planned else figure(measured - planned)
    return Row((spoken(name), shown(planned), shown(measured), "none" if measured == planned else off))


def _chosen(told: Facts) -> Table:
    """`trainer.micro_batch_size=auto`: the sizes that were tried, and what each takes."""
    tried = told.get("tried")
    sizes = list(tried.items())[:MOST_ROWS] if isinstance(tried, Mapping) else []
    lines = [Row((plain(size), gibibytes(peak) if peak is not None else "too large")) for size, peak in sizes]
    if told.number("limit") is not None:
        lines.append(Row(("may be used", gibibytes(told.get("limit")))))
    if told.number("micro") is not None:
        lines.append(Row(("chosen", plain(told.get("micro")))))
    return Table(f"Micro batch, {plain(told.get('how'))}" if told.text("how") else "Micro batch", lines)
