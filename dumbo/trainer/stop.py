"""Leaves the training loop at the end of a step, saved, when something asked or the time is nearly up.

With several ranks all of them leave at the same step: what each heard is exchanged over the CPU while the next step
computes, and acted on at that step's end, so that nothing waits.

A GPU computes behind the clock that is looked at here: steps are launched ahead of it, CUDA graphs most of all, and only a
logged row waits for it. Under a time limit a step's end waits for the GPU to end the step before, so that it is never
further behind than the step just launched, and a step is as long here as it is there. When there seems to be no time for
another step, this one is waited for, too, and looked at again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from dumbo.launch.world import World
from dumbo.trainer.signals import EXIT_CODES, StopRequests

REASONS = tuple(reversed(EXIT_CODES))
"""What can ask, the strongest last: max_time, SIGUSR2, SIGUSR1, SIGTERM, SIGINT."""

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
        world: the ranks.
    """

    def __init__(
        self,
        requests: StopRequests,
        began: float,
        max_time: float | None,
        save_seconds: Callable[[], float],
        eval_seconds: Callable[[], float],
        world: World,
    ) -> None:
        self.requests, self.began, self.max_time = requests, began, max_time
        self.save_seconds, self.eval_seconds = save_seconds, eval_seconds
        self.world = world
        self.on_its_way: tuple[Any, torch.Tensor] | None = None
        self.step_began = time.time()
        self.steps: deque[float] = deque(maxlen=STEPS_LOOKED_AT)
        self.launched: torch.cuda.Event | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.steps:
            self.step_began = time.time()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_began = time.time()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_began = time.time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        behind = self._keep_up(args.device) if self.max_time is not None else 0
        now = time.time()
        self.steps.append(now - self.step_began)  # with what was waited for before it: data, the numbers of a row
        self.step_began = now
        if self.requests.reason is None and self._no_time_for_another(behind):
            if behind:
                torch.cuda.synchronize(args.device)
            if not behind or self._no_time_for_another(0):
                self.requests.reason = "max_time"
        if self.world.size > 1:
            self._exchange()
        if self.agreed is None:
            return
        control.should_evaluate = False  # made up for on resuming
        if state.global_step < state.max_steps:
            control.should_save = control.should_log = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.on_its_way is not None:  # every rank started this exchange
            self.on_its_way[0].wait()
            self.on_its_way = None

    @property
    def agreed(self) -> str | None:
        """What asked, as all ranks know it by now."""
        return self.requests.reason if self.world.size == 1 else self.requests.agreed

    def _exchange(self) -> None:
        """Reads what the ranks said at the last step's end, and says what was heard since."""
        import torch.distributed as dist

        if self.on_its_way is not None:
            work, heard = self.on_its_way
            work.wait()
            if number := int(heard):
                self.requests.agreed = REASONS[number - 1]
                self.on_its_way = None
                return
        own = REASONS.index(self.requests.reason) + 1 if self.requests.reason else 0
        heard = torch.tensor(own)
        self.on_its_way = (dist.all_reduce(heard, dist.ReduceOp.MAX, self.world.group, async_op=True), heard)

    def _keep_up(self, device: torch.device) -> int:
        """Waits until the GPU has ended the step before this one. Returns how many steps it may still be behind."""
        if device.type != "cuda":
            return 0
        before, self.launched = self.launched, torch.cuda.Event()
        self.launched.record(torch.cuda.current_stream(device))
        if before is not None:
            before.synchronize()
        return 1

    def _no_time_for_another(self, behind: int) -> bool:
        """Another step, the evaluation and the saving that may follow it, and the saving at the end.

        Args:
            behind: steps that the GPU has still to end.
        """
        if self.max_time is None:
            return False
        ahead = behind + (1 if self.world.size == 1 else 2)  # the other ranks hear of it one step late
        needed = ahead * max(self.steps) + self.eval_seconds() + 2 * self.save_seconds()
        spare = max(self.steps) + min(SPARE_SECONDS, 0.02 * self.max_time)
        return time.time() - self.began + needed + spare >= self.max_time
