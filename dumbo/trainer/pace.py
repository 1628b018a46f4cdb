"""The pace of passes on the GPU, taken without waiting for it (`graphs.py` compares replays with passes as written by it)."""

from __future__ import annotations

import itertools
import statistics

import torch

PACED = 4
"""Times from pass to pass, one after another, whose median counts."""


class Pace:
    """How long it takes from the end of one pass to that of the next, on the GPU: what is between them counts, on both sides."""

    def __init__(self) -> None:
        self._ends: list[torch.cuda.Event] = []

    def mark(self) -> bool:
        """At the end of a pass; whether that is enough of them."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._ends.append(event)
        return len(self._ends) > PACED

    def broken(self) -> None:
        """Another pass was between."""
        self._ends.clear()

    def ms(self) -> float:
        """Median, in milliseconds; waits for the last of the passes."""
        self._ends[-1].synchronize()
        return statistics.median(one.elapsed_time(other) for one, other in itertools.pairwise(self._ends))
