"""Leaves the training loop at the end of a step, saved, when something asked or the time is nearly up."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from dumbo.trainer.signals import StopRequests

STEPS_LOOKED_AT = 10
"""Of so many last steps the longest says how long the next may take."""
SPARE_SECONDS = 30.0
"""Kept in hand for ending the process, at most; 2% of the time limit where that is less."""


class StopCallback(TrainerCallback):
    """Added after the callbacks that ask for saving and evaluating: it has the last word.

    Args:
        requests: what asked.
        began: when the run began (time.time()).
        max_time: seconds; None: no limit.
        save_seconds, eval_seconds: how long saving and evaluating take, as far as known.
    """

    def __init__(
        self,
        requests: StopRequests,
        began: float,
        max_time: float | None,
        save_seconds: Callable[[], float],
        eval_seconds: Callable[[], float],
    ) -> None:
        self.requests, self.began, self.max_time = requests, began, max_time
        self.save_seconds, self.eval_seconds = save_seconds, eval_seconds
        self.step_began = time.time()
        self.steps: deque[float] = deque(maxlen=STEPS_LOOKED_AT)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_began = time.time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(time.time() - self.step_began)
        if self.requests.reason is None and self._no_time_for_another():
            self.requests.reason = "max_time"
        if self.requests.reason is None:
            return
        control.should_evaluate = False  # made up for on resuming
        if state.global_step < state.max_steps:
            control.should_save = control.should_log = control.should_training_stop = True

    def _no_time_for_another(self) -> bool:
        """Another step, the evaluation and the saving that may follow it, and the saving at the end."""
        if self.max_time is None:
            return False
        needed = max(self.steps) + self.eval_seconds() + 2 * self.save_seconds()
        spare = max(self.steps) + min(SPARE_SECONDS, 0.02 * self.max_time)
        return time.time() - self.began + needed + spare >= self.max_time
