"""Which examples make up which batch: a pure function of (seed, epoch, index), so that a run can go on anywhere.

An epoch's order is cut into global batches (one optimizer step each), and each of those into micro batches. What
is in a step therefore depends neither on the micro batch size nor on the accumulation. Steps do not cross epochs:
the last step of an epoch may be smaller, and its loss is a mean over its own trained tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from dumbo.batch import Batch

WINDOW = 16
"""Global batches within which padded examples are grouped by length."""


class GlobalBatches(torch.utils.data.Sampler[list[int]]):
    """Yields micro batches: lists of example numbers.

    Args:
        size: how many examples there are.
        batch: the arithmetic.
        seed: of the order.
        lengths: (size,) tokens of each example, to group alike ones into a batch (padding); None: no grouping.
    """

    def __init__(self, size: int, batch: Batch, seed: int, lengths: NDArray[np.int64] | None = None) -> None:
        self.size, self.batch, self.seed, self.lengths = size, batch, seed, lengths
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro batches in an epoch."""
        whole, rest = divmod(self.size, self.batch.global_)
        return whole * self.batch.accumulation + -(-rest // self.batch.micro)

    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-self.size // self.batch.global_)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.global_batches(self.epoch):
            for start in range(0, len(step), self.batch.micro):
                yield step[start : start + self.batch.micro].tolist()

    def global_batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """The steps of an epoch, each an array of example numbers."""
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(self.size)
        size = self.batch.global_
        if self.lengths is None:
            return [order[start : start + size] for start in range(0, self.size, size)]
        steps: list[NDArray[np.int64]] = []
        for start in range(0, self.size, WINDOW * size):
            window = order[start : start + WINDOW * size]
            window = window[np.argsort(self.lengths[window], kind="stable")]
            steps += [window[at : at + size] for at in range(0, len(window), size)]
        whole = [step for step in steps if len(step) == size]
        short = [step for step in steps if len(step) < size]  # at most one: only the last window can be short
        return [whole[index] for index in generator.permutation(len(whole))] + short
