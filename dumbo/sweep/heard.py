"""Signals that ask a sweep to stop. A handler only notes them: an exception out of a handler can be lost, while a process forks."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

STOP = (signal.SIGINT, signal.SIGTERM)


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

        def hear(number: int, frame: FrameType | None) -> None:
            self.numbers.append(number)

        before = {number: signal.signal(number, hear) for number in STOP}
        try:
            yield
        finally:
            for number, earlier in before.items():
                signal.signal(number, earlier if earlier is not None else signal.SIG_DFL)
