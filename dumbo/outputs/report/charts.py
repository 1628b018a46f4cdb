"""Which charts the page has, what each is called, and what it says to those who do not see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dumbo.outputs.report.curves import SMOOTH_FROM, Measured, Numbers, points, smoothed
from dumbo.outputs.report.values import figure


@dataclass(frozen=True)
class Chart:
    """A chart: its title, and for each curve (column, label, colour).

    Attributes:
        unit: behind each value.
        log: whether a logarithmic axis is offered.
        noisy: whether means are drawn over it.
        wide: whether it takes the page's whole width.
    """

    name: str
    title: str
    curves: tuple[tuple[str, str, str], ...]
    unit: str = ""
    log: bool = False
    noisy: bool = False
    wide: bool = False


CHARTS = (
    Chart("loss", "Loss", (("loss", "training", "blue"), ("eval_loss", "held out", "orange")), log=True, noisy=True, wide=True),
    Chart("grad", "Gradient norm", (("grad_norm", "before clipping", "blue"),), log=True, noisy=True),
    Chart("lr", "Learning rate", (("lr", "learning rate", "blue"),)),
    Chart("speed", "Throughput", (("tokens_per_s", "tokens a second", "blue"),), noisy=True),
    Chart("mfu", "Use of the GPU's arithmetic (MFU)", (("mfu", "share", "blue"),), noisy=True),
    Chart("memory", "Peak memory", (("peak_memory_gib", "GiB", "blue"),), unit="GiB"),
    Chart("step", "Time a step", (("step_ms", "whole step", "blue"), ("data_wait_ms", "waiting for data", "orange")), unit="ms",
          log=True, noisy=True),
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A chart with its numbers.

    Attributes:
        chart: what it is.
        series: as page.js takes them.
        told: the same in words.
        log: whether a logarithmic axis can be offered.
    """

    chart: Chart
    series: list[dict[str, Any]]
    told: str
    log: bool


def drawn(numbers: Measured) -> list[Drawn]:
    """The charts that this run has numbers for."""
    found = []
    for chart in CHARTS:
        series: list[dict[str, Any]] = []
        told: list[str] = []
        lowest = np.inf
        for column, label, colour in chart.curves:
            if column not in numbers.columns:
                continue
            x, y = numbers.columns[column]
            series += _series(chart, column, label, colour, x, y)
            told.append(f"{label} {_in_words(x, y)}" if len(chart.curves) > 1 else _in_words(x, y))
            lowest = min(lowest, float(np.nanmin(y)))
        if series:
            found.append(Drawn(chart, series, "; ".join(told), chart.log and lowest > 0))
    return found


def _series(chart: Chart, column: str, label: str, colour: str, x: Numbers, y: Numbers) -> list[dict[str, Any]]:
    one = {"label": label, "colour": colour, "kind": "dots" if column == "eval_loss" else "line", **points(x, y)}
    if not chart.noisy or column == "eval_loss" or len(x) < SMOOTH_FROM:
        return [one]
    over = max(10, len(x) // 50)
    mean = {"label": f"mean of {over:,}", "colour": colour, "kind": "line"}
    return [one | {"kind": "faint"}, mean | points(x, smoothed(y, over))]


def _in_words(x: Numbers, y: Numbers) -> str:
    """`6.18 → 0.078, lowest 0.05 at step 701, highest 6.2 at step 3`; what is an end too is not said again."""
    finite = np.flatnonzero(np.isfinite(y))
    first, last = int(finite[0]), int(finite[-1])
    low, high = int(np.nanargmin(y)), int(np.nanargmax(y))
    if y[low] == y[high]:
        return f"{figure(float(y[first]))} throughout"
    told = f"{figure(float(y[first]))} → {figure(float(y[last]))}"
    for name, place in (("lowest", low), ("highest", high)):
        if y[place] not in (y[first], y[last]):
            told += f", {name} {figure(float(y[place]))} at step {int(x[place]):,}"
    return told
