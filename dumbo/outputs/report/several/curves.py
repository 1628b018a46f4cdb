"""Curves of several runs over one another, on steps that all of them share.

metrics.jsonl -> here -> page.js. A chart library wants one x axis for all: where the runs have more steps together than a
chart has room for, each point is the mean of the steps around it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dumbo.outputs.report.curves import LAST_STEP, Numbers, in_order, measured

COLUMNS = ("loss", "eval_loss", "grad_norm", "lr", "tokens_per_s")
TITLES = {"loss": "Training loss", "eval_loss": "Held-out loss", "grad_norm": "Gradient norm", "lr": "Learning rate",
          "tokens_per_s": "Tokens a second"}  # fmt: skip
FEW = 12
"""So many runs get a chart of every column; more than that, of the losses."""
ROOM, LEAST, MOST = 120_000, 160, 1200
"""Points of a chart in all, and of one of its curves."""
LONG = 5
"""Points of a curve whose start may run out of its chart."""
LONGEST = 20_000
"""Rows of a run that are kept as they are while the others are read."""
Curves = Mapping[str, tuple[Numbers, Numbers]]


@dataclass(frozen=True)
class Overlay:
    """A chart.

    Attributes:
        steps: (T,) shared by all curves.
        lines: job's place in the list -> (T,), None for a gap.
        each: how many steps a point is the mean of, where it is of more than one.
        top: what the values stay below once the first tenth of the steps is over: the start of a loss would press the rest flat.
    """

    name: str
    title: str
    steps: list[float]
    lines: dict[int, list[float | None]]
    each: int
    top: float | None
    log: bool


def curves_of(file: Path) -> Curves:
    """Column -> (steps, values), a value that is not finite as nan; what has no finite value is left out.

    Polars reads the file whole; one that is cut or odd is read line by line (report/curves.py).
    """
    if not file.is_file():
        return {}
    try:
        schema = {"step": pl.Float64, **dict.fromkeys(COLUMNS, pl.Float64)}
        read = pl.read_ndjson(file, schema=schema)
    except (pl.exceptions.PolarsError, OSError):
        columns = measured(file).columns
        return {name: _shortened(*columns[name]) for name in COLUMNS if name in columns}
    steps = read["step"].to_numpy()
    held_out = read["eval_loss"].to_numpy()
    usual = np.isfinite(steps) & (steps >= 0) & (steps < LAST_STEP)
    training = usual & np.isnan(held_out)  # a training row has a loss, also one that was not finite
    found: dict[str, tuple[Numbers, Numbers]] = {}
    for name in COLUMNS:
        values = held_out if name == "eval_loss" else read[name].to_numpy()
        rows = usual & np.isfinite(values) if name == "eval_loss" else training
        if np.isfinite(values[rows]).any():
            x, y = in_order(steps[rows], np.where(np.isfinite(values[rows]), values[rows], np.nan))
            found[name] = _shortened(x, y)
    return found


def overlaid(curves: Sequence[Curves]) -> list[Overlay]:
    """The charts that at least one run has numbers for.

    Args:
        curves: of each run that is drawn, in the page's order.
    """
    found = []
    for name in COLUMNS if len(curves) <= FEW else COLUMNS[:2]:
        those = {place: one[name] for place, one in enumerate(curves) if name in one}
        if not those:
            continue
        steps = np.unique(np.concatenate([x for x, _ in those.values()]))
        room = int(np.clip(ROOM // len(those), LEAST, MOST))
        each = 1
        if len(steps) > room:
            first, last = float(steps[0]), float(steps[-1])
            each = int(np.ceil((last - first + 1) / room))
            many = int((last - first) // each) + 1
            lines = {place: _binned(x, y, first, each, many) for place, (x, y) in those.items()}
            steps = np.minimum(first + each * np.arange(many) + (each - 1) / 2, last)
        else:
            lines = {place: _placed(x, y, steps) for place, (x, y) in those.items()}
        lowest = min(float(np.nanmin(y)) for _, y in those.values())
        found.append(Overlay(name, TITLES[name], [_short(x) for x in steps.tolist()],
                             {place: [_json(value) for value in line.tolist()] for place, line in lines.items()},
                             each, _top(name, list(those.values())), name != "tokens_per_s" and lowest > 0))  # fmt: skip
    return found


def _top(name: str, those: Sequence[tuple[Numbers, Numbers]]) -> float | None:
    if name not in COLUMNS[:2] or max(len(x) for x, _ in those) < LONG:
        return None
    ends = [y[(x >= x[0] + (x[-1] - x[0]) / 10) & np.isfinite(y)] for x, y in those]
    highest = np.nanquantile(np.concatenate(ends), 0.995) if any(len(end) for end in ends) else np.nan
    whole = max(float(np.nanmax(y)) for _, y in those)
    return _json(float(highest)) if highest < whole else None


def _placed(x: Numbers, y: Numbers, steps: Numbers) -> Numbers:
    line = np.full(len(steps), np.nan)
    line[np.searchsorted(steps, x)] = y
    return line


def _binned(x: Numbers, y: Numbers, first: float, each: int, many: int) -> Numbers:
    """(many,) means of `each` steps."""
    place = ((x - first) // each).astype(int)
    there = np.isfinite(y)
    counts = np.bincount(place[there], minlength=many)
    sums = np.bincount(place[there], weights=y[there], minlength=many)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _shortened(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
    """A very long run as means of neighbours, so that hundreds of them fit into memory."""
    over = len(x) // LONGEST + 1
    if over == 1:
        return x, y
    many = len(x) // over * over
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a bucket of nothing but nan is nan
        return x[:many].reshape(-1, over).mean(axis=1), np.nanmean(y[:many].reshape(-1, over), axis=1)


def _short(step: float) -> float | int:
    return int(step) if step == int(step) else step


def _json(value: float) -> float | None:
    return None if value != value else float(f"{value:.5g}")


def as_json(charts: Sequence[Overlay]) -> list[dict[str, Any]]:
    """For page.js."""
    return [{"name": one.name, "x": one.steps, "top": one.top, "lines": [[place, line] for place, line in one.lines.items()]}
            for one in charts]  # fmt: skip
