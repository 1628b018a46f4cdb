"""Signals and the time limit: save at the end of the step, then stop.

    SIGINT   Ctrl-C                  exit code 130
    SIGTERM                          exit code 143
    SIGUSR1, SIGUSR2, max_time       status preempted, exit code 0

A handler only sets a flag; a second SIGINT gives up on saving.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from dumbo.errors import Stopped

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 0, "SIGUSR2": 0, "max_time": 0}


class StopRequests:
    """What asked the run to stop, if anything did."""

    def __init__(self) -> None:
        self.reason: str | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals for the length of the block. Only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = [name for name in EXIT_CODES if hasattr(signal, name)]
        before = {name: signal.signal(getattr(signal, name), self._handle) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.reason == "SIGINT" and name == "SIGINT":
            raise KeyboardInterrupt
        self.reason = name

    def raise_if_any(self) -> None:
        """Raises Stopped when something asked."""
        if self.reason is not None:
            raise Stopped(self.reason, EXIT_CODES[self.reason])


class StopCallback(TrainerCallback):
    """At the end of a step: stop when asked, or when the time left would not be enough for another step and a save.

    Args:
        requests: what asked.
        began: when the run began (time.time()).
        max_time: seconds; None: no limit.
    """

    def __init__(self, requests: StopRequests, began: float, max_time: float | None) -> None:
        self.requests, self.began, self.max_time = requests, began, max_time
        self.last_step = time.time()
        self.save_seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last_step = time.time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step_seconds = time.time() - self.last_step
        if self.max_time is not None and self.requests.reason is None:
            margin = 2 * step_seconds + 2 * self.save_seconds + 0.02 * self.max_time
            if time.time() - self.began + margin >= self.max_time:
                self.requests.reason = "max_time"
        if self.requests.reason is not None and state.global_step < state.max_steps:
            control.should_save = control.should_log = control.should_training_stop = True
        if self.requests.reason is not None:
            control.should_evaluate = False
