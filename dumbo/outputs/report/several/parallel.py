"""Parallel coordinates (Inselberg 1985, doi:10.1007/BF01898350): an axis for each key that differs, the result last, a line a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dumbo.outputs.report.several.effects import DECADE, Effects
from dumbo.outputs.report.several.jobs import Several
from dumbo.outputs.report.several.varied import Varied, shown
from dumbo.outputs.report.values import figure

MOST_AXES = 9
MOST_LABELS = 14
TICKS = 4


def parallel(several: Several, keys: Sequence[Varied], told: Effects) -> dict[str, Any] | None:
    """Axes and lines for page.js; None where nothing differs, or fewer than two runs have a result.

    Returns:
        axes: label and ticks, [[height, text], …] with heights from 0 to 1. lines: [job's place in the page's order, heights].
    """
    ranked = several.ranked()
    shares = {effect.varied.key: effect.share or 0.0 for effect in told.each}
    chosen = sorted(keys, key=lambda key: -shares.get(key.key, -1.0))[:MOST_AXES]
    chosen = [key for key in keys if key in chosen]
    if len(ranked) < 2 or not chosen:
        return None
    place_of = {id(job): place for place, job in enumerate(several.jobs)}
    places = [place_of[id(job)] for job in ranked]
    axes, columns = [], []
    for key in chosen:
        axis, heights = _axis(key, [key.values[place] for place in places])
        axes.append(axis)
        columns.append(heights)
    results = [float(job.result or 0.0) for job in ranked]
    axis, heights = _numbers(several.metric, results, log=False)
    axes.append(axis)
    columns.append(heights)
    lines = [[number, [column[number] for column in columns]] for number in range(len(ranked))]
    return {"axes": axes, "lines": lines, "left": len(keys) - len(chosen)}


def _axis(key: Varied, values: list[Any]) -> tuple[dict[str, Any], list[float | None]]:
    distinct = key.distinct
    if key.is_numeric and distinct:
        low, high = float(distinct[0]), float(distinct[-1])
        return _numbers(
            key.label, values, log=low > 0 and high / low >= DECADE, exact=distinct if len(distinct) <= 8 else None
        )
    last = max(1, len(distinct) - 1)
    height = {value: place / last for place, value in enumerate(distinct)}
    every = math.ceil(len(distinct) / MOST_LABELS)
    ticks = [[_round(height[value]), shown(value)[:18]] for value in distinct[::every]]
    return {"label": key.label, "ticks": ticks}, [None if value is None else _round(height[value]) for value in values]


def _numbers(
    label: str, values: Sequence[Any], *, log: bool, exact: list[Any] | None = None
) -> tuple[dict[str, Any], list[float | None]]:
    known = [float(value) for value in values if value is not None]
    low, high = min(known), max(known)

    def height(value: float) -> float:
        if high == low:
            return 0.5
        if log:
            return _round((math.log(value) - math.log(low)) / (math.log(high) - math.log(low)))
        return _round((value - low) / (high - low))

    between = [low * (high / low) ** (n / TICKS) if log else low + (high - low) * n / TICKS for n in range(TICKS + 1)]
    marks = exact if exact is not None else between if high > low else [low]
    ticks = [
        [height(float(mark)), shown(mark) if exact is not None else figure(float(f"{mark:.3g}"))] for mark in marks
    ]
    return {"label": label, "ticks": ticks, "log": log}, [
        None if value is None else height(float(value)) for value in values
    ]


def _round(value: float) -> float:
    return round(value, 4)
