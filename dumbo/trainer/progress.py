"""What is counted while training: over the whole run, and since the last logged step.

The engine adds; rows for metrics.jsonl come out. Saved with each checkpoint, so that a resumed run goes on counting.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dumbo.trainer.flops import Flops
from dumbo.trainer.throughput import peak_memory_gib

TRAIN_LOSS_OVER = 10
"""`train_loss` is the mean of so many last logged losses."""
SPIKE_OVER, SPIKE_LEAST, SPIKE_TIMES = 64, 16, 8.0
"""A spike is a loss so many median deviations above the median of the last ones, of which there must be some."""


@dataclass
class Counters:
    """Sums over the whole run.

    Attributes:
        tokens: real tokens, padding not counted.
        trained_tokens: tokens that bore the loss.
        documents: documents seen.
        recent_losses: of the last logged steps, those that are finite.
        went_back: how often weights went back to a checkpoint after steps that were not finite.
        best_step, best_loss: the saved step with the lowest held-out loss.
    """

    tokens: int = 0
    trained_tokens: int = 0
    documents: int = 0
    recent_losses: list[float] = field(default_factory=list)
    went_back: int = 0
    best_step: int | None = None
    best_loss: float | None = None

    @property
    def train_loss(self) -> float | None:
        """Mean of the last ten logged losses."""
        last = self.recent_losses[-TRAIN_LOSS_OVER:]
        return sum(last) / len(last) if last else None

    def note_loss(self, loss: float) -> bool:
        """Keeps it; returns whether it is a spike."""
        if not math.isfinite(loss):
            return False
        spike = self._is_spike(loss)
        self.recent_losses = [*self.recent_losses, loss][-SPIKE_OVER:]
        return spike

    def _is_spike(self, loss: float) -> bool:
        if len(self.recent_losses) < SPIKE_LEAST:
            return False
        middle = statistics.median(self.recent_losses)
        deviation = statistics.median(abs(seen - middle) for seen in self.recent_losses)
        return loss > middle + SPIKE_TIMES * max(deviation, 0.01 * abs(middle))

    def note_saved(self, step: int, held_out: tuple[int, float] | None) -> None:
        """A step is saved; `held_out` is (step, loss) of the last evaluation."""
        if held_out is None or held_out[0] != step:
            return
        if self.best_loss is None or held_out[1] < self.best_loss:
            self.best_step, self.best_loss = step, held_out[1]


@dataclass
class Interval:
    """Since the last logged step.

    Attributes:
        began: time.perf_counter() then.
        starts: the device's mark then (device_clock.py), where it has marks: its clock counts, not `began`.
        paused: seconds that were not training (evaluating, saving).
        waited: seconds for data.
        lengths: of the documents that went through the model, a batch each.
    """

    began: float = field(default_factory=time.perf_counter)
    starts: torch.cuda.Event | None = None
    tokens: int = 0
    lengths: list[NDArray[np.int64]] = field(default_factory=list)
    waited: float = 0.0
    paused: float = 0.0
    steps: int = 0

    def add(self, lengths: NDArray[np.int64]) -> None:
        """Documents of these lengths go through the model."""
        self.tokens += int(lengths.sum())
        self.lengths.append(lengths)


@dataclass(frozen=True)
class Meter:
    """Makes rows.

    Args:
        flops: that a step needs; None where they are not known.
        peak: of the device, a second; None where it is not known.
    """

    flops: Flops | None
    peak: float | None

    def row(
        self, logs: Mapping[str, float], counters: Counters, interval: Interval, seconds: float | None = None
    ) -> dict[str, Any]:
        """One training row of metrics.jsonl, `step` not among it.

        Args:
            seconds: that the interval took, pauses with it; None: it is over now.
        """
        seconds = time.perf_counter() - interval.began if seconds is None else seconds
        seconds = max(1e-9, seconds - interval.paused)
        flops = self.flops.of(np.concatenate(interval.lengths)) if self.flops and interval.lengths else None
        steps = max(1, interval.steps)
        return {
            "tokens": counters.tokens,
            "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm"),
            "lr": logs["learning_rate"],
            "tokens_per_s": round(interval.tokens / seconds, 1),
            "mfu": round(flops / seconds / self.peak, 4) if flops and self.peak else None,
            "peak_memory_gib": round(peak_memory_gib(), 3),
            "data_wait_ms": round(1000 * interval.waited / steps, 2),
            "step_ms": round(1000 * seconds / steps, 2),
        }
