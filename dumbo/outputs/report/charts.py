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
        wide: whether it takes the page's whole width.
    """

    name: str
    title: str
    curves: tuple[tuple[str, str, str], ...]
    unit: str = ""
    log: bool = False
    wide: bool = False


CHARTS = (
    Chart("loss", "Loss", (("loss", "training", "blue"), ("eval_loss", "held out", "orange")), log=True, wide=True),
    Chart("grad", "Gradient norm", (("grad_norm", "before clipping", "blue"),), log=True),
    Chart("lr", "Learning rate", (("lr", "learning rate", "blue"),)),
    Chart("speed", "Throughput", (("tokens_per_s", "tokens a second", "blue"),)),
    Chart("mfu", "Use of the GPU's arithmetic (MFU)", (("mfu", "share", "blue"),)),
    Chart("memory", "Peak memory", (("peak_memory_gib", "GiB", "blue"),), unit="GiB"),
    Chart("step", "Time a step", (("step_ms", "whole step", "blue"), ("data_wait_ms", "waiting for data", "orange")), unit="ms", log=True),
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
    if column != "loss" or len(x) < SMOOTH_FROM:
        return [one]
    over = max(10, len(x) // 50)
    mean = {"label": f"training, mean of about {over:,}", "colour": colour, "kind": "line"}
    return [one | {"kind": "faint"}, mean | points(x, smoothed(y, over))]


def _in_words(x: Numbers, y: Numbers) -> str:
    """`from 6.18 at step 1 to 0.078 at step 715, lowest 0.05 at step 701, highest 6.2 at step 3`."""
    there = np.flatnonzero(np.isfinite(y))
    first, last = there[0], there[-1]
    low, high = np.nanargmin(y), np.nanargmax(y)
    if y[low] == y[high]:
        return f"{figure(float(y[first]))} throughout"
    ends = (
        f"from {figure(float(y[first]))} at step {int(x[first]):,} to {figure(float(y[last]))} at step {int(x[last]):,}"
    )
    return f"{ends}, lowest {figure(float(y[low]))} at step {int(x[low]):,}, highest {figure(float(y[high]))} at step {int(x[high]):,}"
