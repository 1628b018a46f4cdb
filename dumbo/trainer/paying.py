"""Whether CUDA graphs are used, where that is left open: whether they pay.

Used by `graphs.py`. Launching has to take most of a pass (`PAYS`). It also takes long where it waits for a full queue, so that
the GPU has to get from one pass to the next in less time by replays than it did as written (`SAVES`), while nobody waits for it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from dumbo.trainer.pace import Pace

WATCHED = 4
"""Micro batches whose launching is timed, to decide whether graphs pay."""
PAYS = 0.7
"""Launching takes so large a share of a pass, or more: below it the GPU is busy while Python is done early."""
SAVES = 0.03
"""From one pass to the next takes so much less time by replays, or more."""

Written = Callable[[], torch.Tensor]
"""A pass as it is written; its loss."""


class Paying:
    """What is known of it.

    Args:
        always: they are used in any case.

    Attributes:
        used: None: not decided yet.
        judged: replays were held against passes as written, or need not be.
        said: for run.json.
    """

    def __init__(self, *, always: bool) -> None:
        self.used: bool | None = True if always else None
        self.judged = always
        self.said = "on"
        self._written_ms: float | None = None
        self._shares: list[float] = []
        self._pace = Pace()

    def as_written(self, one_pass: Written) -> torch.Tensor | None:
        """The loss of a pass as it is written, where graphs have no part in it yet, or no more; None: it is theirs."""
        if self.used is None:
            return self._watched(one_pass)
        if not self.used:
            return one_pass()
        if not self.judged and self._written_ms is None:
            return self._paced(one_pass)
        return None

    def towards_a_graph(self) -> None:
        """A pass comes that is neither as written nor a replay: the pace begins anew."""
        self._pace.broken()

    def replays_pay(self) -> bool:
        """After a replay. Once enough of them have come in a row, they are held against passes as written."""
        if self.judged or not self._pace.mark():
            return True
        assert self._written_ms is not None
        self.judged = True
        replayed = self._pace.ms()
        said = f"a pass each {self._written_ms:.1f} ms as written, {replayed:.1f} replayed"
        if replayed <= (1 - SAVES) * self._written_ms:
            self.said += f", {said}"
            return True
        self.give_up(f"off, {said}")
        return False

    def give_up(self, said: str) -> None:
        """Passes go as they are written from here on."""
        self.used, self.said = False, said

    def _watched(self, one_pass: Written) -> torch.Tensor:
        """The launching is timed; after some passes it is decided. The first one compiles, and does not count."""
        torch.cuda.synchronize()
        began = time.perf_counter()
        loss = one_pass()
        launched = time.perf_counter()
        torch.cuda.synchronize()
        self._shares.append((launched - began) / (time.perf_counter() - began))
        if len(self._shares) > WATCHED:
            share = statistics.median(self._shares[1:])
            self.used = share >= PAYS
            self.said = f"{'on' if self.used else 'off'}, launching takes {100 * share:.0f}% of a pass"
        return loss

    def _paced(self, one_pass: Written) -> torch.Tensor:
        """Nobody waits: what replays are held against."""
        loss = one_pass()
        if self._pace.mark():
            self._written_ms = self._pace.ms()
            self._pace.broken()
        return loss
