"""metrics.jsonl -> curves to draw: at most 2,000 points each, every spike among them.

A curve is thinned by keeping the lowest and the highest point of each bucket (as min/max decimation does in audio
editors), so what sticks out of it still does.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dumbo.outputs.report.reading import as_number, json_lines

MOST_POINTS = 2000
MOST_MARKS = 500
LAST_STEP = 2**53
"""As far as a browser counts."""
SMOOTH_FROM = 60
"""A curve of so many points gets a smoothed one too, where it is a noisy one."""
COLUMNS = ("loss", "eval_loss", "lr", "grad_norm", "tokens_per_s", "mfu", "peak_memory_gib", "step_ms", "data_wait_ms")
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """What a run wrote while it trained.

    Attributes:
        columns: name -> (steps, values), in the order of the steps; a value that was not finite is nan.
        marks: (step, "spike" or "skipped", in words), the first MOST_MARKS.
        spikes, skipped: how many there are.
        faults: what could not be read.
    """

    columns: Mapping[str, tuple[Numbers, Numbers]]
    marks: list[tuple[int, str, str]] = field(default_factory=list)
    spikes: int = 0
    skipped: int = 0
    faults: list[str] = field(default_factory=list)

    def last_step(self) -> int:
        """The last step with a row; 0 where there is none."""
        return int(max((steps[-1] for steps, _ in self.columns.values()), default=0))

    def first(self, name: str) -> float | None:
        return self._end(name, 0)

    def last(self, name: str) -> float | None:
        return self._end(name, -1)

    def _end(self, name: str, place: int) -> float | None:
        values = self.columns[name][1] if name in self.columns else np.empty(0)
        finite = values[np.isfinite(values)]
        return float(finite[place]) if len(finite) else None


def measured(file: Path) -> Measured:
    """Reads metrics.jsonl, up to a line that is cut."""
    read = {name: (array("d"), array("d")) for name in COLUMNS}
    marks: list[tuple[int, str, str]] = []
    faults: list[str] = []
    spikes = skipped = 0
    for row in json_lines(file):
        if isinstance(row, str):
            faults.append(row)
            break
        step = as_number(row.get("step"))
        if step is None or not 0 <= step < LAST_STEP:
            continue
        for name in COLUMNS:
            if name in row:
                value = as_number(row[name])
                steps, values = read[name]
                steps.append(step)
                values.append(np.nan if value is None else value)
        if row.get("spike") is True:
            spikes += 1
            marks.append((int(step), "spike", f"loss {as_number(row.get('loss'))}"))
        if count := as_number(row.get("skipped_steps")):
            skipped += int(count)
            marks.append((int(step), "skipped", f"{int(count):,} skipped: not finite"))
    columns = {name: in_order(*map(np.array, pair)) for name, pair in read.items() if len(pair[0])}
    columns = {name: pair for name, pair in columns.items() if np.isfinite(pair[1]).any()}
    return Measured(columns, marks[:MOST_MARKS], spikes, skipped, faults)


def in_order(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
    """By step, a step once."""
    if len(x) > 1 and (np.diff(x) <= 0).any():  # no run writes that; a step that is there twice: the later row
        x, last = np.unique(x[::-1], return_index=True)
        y = y[::-1][last]
    return x, y


def thinned(x: Numbers, y: Numbers, most: int = MOST_POINTS) -> tuple[Numbers, Numbers]:
    """At most `most` of the points: the ends, and of each bucket its lowest and its highest.

    Args:
        x, y: (N,) each; nan in `y` is a gap.
    """
    if len(x) <= most:
        return x, y
    kept = {0, len(x) - 1}
    for bucket in np.array_split(np.arange(len(x)), (most - 2) // 2):
        part = y[bucket]
        if np.isnan(part).all():
            kept.add(int(bucket[0]))
        else:
            kept |= {int(bucket[np.nanargmin(part)]), int(bucket[np.nanargmax(part)])}
    chosen = np.array(sorted(kept))
    return x[chosen], y[chosen]


def smoothed(y: Numbers, over: int) -> Numbers:
    """The mean of `over` points around each, of fewer near the ends: it does not lag behind. Gaps are passed over."""
    place = np.arange(len(y))
    reach = np.minimum(over // 2, np.minimum(place, place[::-1]))
    there = np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(there, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(there)])
    first, last = place - reach, place + reach + 1
    many = counts[last] - counts[first]
    return np.where(many > 0, (sums[last] - sums[first]) / np.maximum(many, 1), np.nan)


def points(x: Numbers, y: Numbers) -> dict[str, Any]:
    """A curve as JSON: whole steps, six digits, null for a gap."""
    x, y = thinned(x, y)
    ys = [None if value != value else float(f"{value:.6g}") for value in y.tolist()]
    return {"x": [int(step) if step == int(step) else step for step in x.tolist()], "y": ys}
