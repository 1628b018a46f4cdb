"""Which examples make up which batch: a pure function of (seed, epoch, index), so that a run can go on anywhere.

An epoch's order is cut into global batches (one optimizer step each), each of those is dealt out to the ranks, and
what a rank gets is cut into micro batches. What is in a step therefore depends neither on the micro batch size, nor on
the accumulation, nor on the number of ranks. Steps do not cross epochs: the last step of an epoch may be smaller, and
its loss is a mean over its own trained tokens. There a rank may get fewer micro batches than another: it is given
empty ones (a list without numbers), which `collate.py` turns into rows that bear no loss, so that every rank makes the
same number of forward and backward passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from dumbo.batch import Batch

WINDOW = 16
"""Global batches within which padded examples are grouped by length."""


class GlobalBatches(torch.utils.data.Sampler[list[int]]):
    """Yields a rank's micro batches: lists of example numbers.

    Args:
        size: how many examples there are.
        batch: the arithmetic.
        seed: of the order.
        lengths: (size,) tokens of each example, to group alike ones into a batch (padding); None: no grouping.
        rank: whose micro batches, of `batch.ranks`.
    """

    def __init__(
        self, size: int, batch: Batch, seed: int, lengths: NDArray[np.int64] | None = None, rank: int = 0
    ) -> None:
        self.size, self.batch, self.seed, self.lengths, self.rank = size, batch, seed, lengths, rank
        self.epoch = 0
        self._kept: tuple[int, list[NDArray[np.int64]]] | None = None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def cut(self, batch: Batch) -> GlobalBatches:
        """The same steps in other micro batches, at the same epoch."""
        other = GlobalBatches(self.size, batch, self.seed, self.lengths, self.rank)
        other.epoch, other._kept = self.epoch, self._kept
        return other

    def __len__(self) -> int:
        """Micro batches of a rank in an epoch."""
        whole, rest = divmod(self.size, self.batch.global_)
        return whole * self.batch.accumulation + self._rounds(rest)

    def _rounds(self, examples: int) -> int:
        """Forward passes every rank makes for a step of so many examples: those of the rank that has most."""
        return math.ceil(math.ceil(examples / self.batch.ranks) / self.batch.micro)

    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-self.size // self.batch.global_)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.global_batches(self.epoch):
            yield from self._micro_batches(step)

    def micro_batches(self, number: int) -> list[list[int]]:
        """This rank's micro batches of optimizer step `number` of the run (from 0)."""
        return list(self._micro_batches(self.step(number)))

    def _micro_batches(self, step: NDArray[np.int64]) -> Iterator[list[int]]:
        micro = self.batch.micro
        mine = step[self.rank :: self.batch.ranks]  # every n-th: alike lengths on all ranks where they are sorted
        for start in range(0, self._rounds(len(step)) * micro, micro):
            yield mine[start : start + micro].tolist()

    def step(self, number: int) -> NDArray[np.int64]:
        """Example numbers of optimizer step `number` of the run (from 0), on all ranks together."""
        epoch, place = divmod(number, self.steps())
        if self._kept is None or self._kept[0] != epoch:
            self._kept = (epoch, self.global_batches(epoch))
        return self._kept[1][place]

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
