"""Signals that ask a sweep to stop. A handler only notes them: an exception out of a handler can be lost, while a process forks."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from dumbo.trainer.signals import AGAIN

STOP = (signal.SIGINT, signal.SIGTERM)
APART = 1.5 * AGAIN
"""Seconds between two SIGINTs that count as two: by what jobs count (`trainer/signals.py`), and what passing on may take more."""


def not_deaf() -> None:
    """SIGINT does something from here on: who is started in the background by a script has it ignored, and `dumbo sweep
    cancel` sends it.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Heard:
    """What was heard, in order."""

    numbers: list[int] = field(default_factory=list)
    _interrupted: float = -APART

    @property
    def first(self) -> str | None:
        """Its name, as `SIGINT`."""
        return signal.Signals(self.numbers[0]).name if self.numbers else None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals for the length of the block. Only the main thread can; in another one nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        before = {number: signal.signal(number, self.hear) for number in STOP}
        try:
            yield
        finally:
            for number, earlier in before.items():
                signal.signal(number, earlier if earlier is not None else signal.SIG_DFL)

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Notes a signal."""
        now = time.monotonic()
        if number == signal.SIGINT:
            if now - self._interrupted < APART:
                return
            self._interrupted = now
        self.numbers.append(number)
