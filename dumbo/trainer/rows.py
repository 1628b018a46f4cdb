"""The rows of metrics.jsonl, and what follows from their numbers: skipped steps are told of, too many lead back.

A loss and a gradient norm are numbers on the device. To read them is to wait for all that was launched, after which the
device waits for the next launch. So on a GPU a step's numbers are only sent for, and read when the next step has been
launched: its row comes one step late. Where training stops anyway (held-out loss, checkpoint, the end) nothing is late.
A row's time is the device's, from the mark at the end of the row before to its own (device_clock.py): nobody watches when the
numbers come.

Private methods of Trainer called: _maybe_log_save_evaluate, _load_from_checkpoint, _load_optimizer_and_scheduler,
_get_learning_rate. Private attributes used: _globalstep_last_logged, _total_loss_scalar.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_pt_utils import nested_gather

from dumbo.errors import RunFailed
from dumbo.trainer.bad_numbers import BadStep, Taken, Watch
from dumbo.trainer.device_clock import between, drain, mark
from dumbo.trainer.progress import Counters, Interval, Meter

if TYPE_CHECKING:
    from transformers import Trainer

    from dumbo.trainer.checkpoint import Checkpoints
    from dumbo.trainer.saving import Saving

    class _Base(Saving, Trainer):
        pass
else:
    _Base = object


TIMED = ("tokens_per_s", "mfu", "step_ms")
"""What a row says of its interval's time."""


@dataclass(frozen=True)
class _SentFor:
    """The numbers of a logged step, on their way to the CPU.

    Attributes:
        step, row: of the step; the row lacks loss and norm.
        interval: since the row before.
        steps: that the loss is a sum of.
        numbers: on the CPU once `there` has happened: that sum, the norm of the step, the norms of `taken`.
        there: the device's mark; None: they are there.
    """

    step: int
    row: dict[str, Any]
    interval: Interval
    steps: int
    numbers: torch.Tensor
    there: torch.cuda.Event | None
    taken: Taken
    has_norm: bool


class Rows(_Base):
    """A mixin over Trainer, beneath `Engine`, whose `equip` sets what stands here."""

    rows_late: bool
    watch: Watch
    meter: Meter
    counters: Counters
    interval: Interval
    checkpoints: Checkpoints
    on_row: Callable[[dict[str, Any]], None]
    on_bad: Callable[[str], None]
    max_bad_steps: int
    _late: _SentFor | None = None

    def after_step(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, epoch: Any, *others: Any, **more: Any
    ) -> None:
        """Trainer's own; a row that nothing waits for is sent for, and read the next time."""
        asked = self.control.should_log
        self.read_late_row()
        control = self.control
        control.should_log = asked  # the callbacks of a row take it back
        due = control.should_log and self.state.global_step > self._globalstep_last_logged
        waited_for = control.should_evaluate or control.should_save or control.should_training_stop
        if due and self.rows_late and not waited_for:
            self._send_for(tr_loss, grad_norm, more.get("learning_rate"))
            control.should_log = False
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, epoch, *others, **more)

    def _send_for(self, tr_loss: torch.Tensor, grad_norm: Any, rate: float | None) -> None:
        taken = self.watch.take()
        wanted = [nested_gather(tr_loss, self.args.parallel_mode).mean()]
        wanted += [grad_norm] if grad_norm is not None else []
        wanted += taken.norms
        vector = torch.stack(
            [torch.as_tensor(one, device=tr_loss.device).detach().float().reshape(()) for one in wanted]
        )
        if vector.device.type == "cuda":
            numbers = torch.empty(vector.shape, pin_memory=True)
            numbers.copy_(vector, non_blocking=True)
        else:
            numbers = vector.clone()
        there = self.marked_now()
        rate = self._get_learning_rate() if rate is None else rate
        row = self.meter.row({"loss": math.nan, "learning_rate": rate}, self.counters, self.interval)
        interval, self.interval = self.interval, Interval(starts=there)
        steps = self.state.global_step - self._globalstep_last_logged
        tr_loss -= tr_loss
        self._globalstep_last_logged = self.state.global_step
        has_norm = grad_norm is not None
        self._late = _SentFor(self.state.global_step, row, interval, steps, numbers, there, taken, has_norm)

    def read_late_row(self) -> None:
        """The row that was sent for, if any."""
        if self._late is None:
            return
        late, self._late = self._late, None
        row = dict(late.row)
        seconds = between(late.interval.starts, late.there)
        if seconds is not None:
            unknown = {"loss": math.nan, "learning_rate": math.nan}
            timed = self.meter.row(unknown, self.counters, late.interval, seconds)
            row |= {name: timed[name] for name in TIMED}
        total, *norms = late.numbers.tolist()
        row |= {"loss": total / late.steps, "grad_norm": norms.pop(0) if late.has_norm else None}
        self._total_loss_scalar += total
        self._written(late.step, row, *self.watch.judge(late.taken, norms))

    def rows_begin(self) -> None:
        """At the start of training: what an earlier one left is not of this one."""
        self._late = None
        self.interval = Interval(starts=self.marked_now())

    def marked_now(self) -> torch.cuda.Event | None:
        """The device's mark, see `device_clock.mark`."""
        return mark(self.args.device)

    def take_row(self, logs: dict[str, float]) -> None:
        """A row for metrics.jsonl: training rows carry `loss`, evaluation rows `eval_loss`; Trainer's summary is dropped.

        Raises:
            RunFailed: see `_go_back`.
        """
        step = self.state.global_step
        if "loss" in logs:
            now = self.marked_now()
            row = self.meter.row(logs, self.counters, self.interval, between(self.interval.starts, now))
            self.interval = Interval(starts=now)
            self._written(step, row, *self.watch.look())
        elif "eval_loss" in logs:
            self._written(step, {"eval_loss": logs["eval_loss"], "tokens": self.counters.tokens}, [], None)

    def _written(self, step: int, row: dict[str, Any], bad: Sequence[BadStep], mean: float | None) -> None:
        """Skipped steps since the last row are told of; too many in a row lead back to the last checkpoint.

        Args:
            bad: these steps.
            mean: loss of the others; None: there are none.
        """
        row = {"step": step, **row}
        if bad:
            row |= {"loss": math.nan if mean is None else mean, "skipped_steps": len(bad)}
        if "loss" in row and self.counters.note_loss(row["loss"]):
            row["spike"] = True
        self.on_row(row)
        for one in bad:
            self.on_bad(str(one))
        if self.watch.in_a_row >= self.max_bad_steps:
            self._go_back(bad[-1])
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, dict(row))

    def _go_back(self, last: BadStep) -> None:
        """Weights and optimizer as they were in the last checkpoint; the data, the schedule and the counting go on."""
        drain(self.args.device)  # the step that was launched since: no part of the pause
        paused_at = time.perf_counter()
        many = f"{self.watch.in_a_row} steps in a row were not finite, the last: {last}"
        remedy = (
            "  Look at these rows; else lower trainer.lr, lengthen trainer.warmup_steps, or write trainer.precision=fp32. "
            f"Checkpoints are whole: resume={self.checkpoints.folder.parent}"
        )
        self._settled()
        good = self.checkpoints.newest_good(self.on_bad) if self.checkpoints.steps() else None
        if good is None:
            raise RunFailed(f"{many}\n  There is no checkpoint to go back to yet.\n{remedy}")
        if self.counters.went_back:
            raise RunFailed(f"{many}\n  Going back to a checkpoint has not helped before.\n{remedy}")
        self.counters.went_back += 1
        self.watch.in_a_row = 0
        schedule: Any = self.lr_scheduler
        place = schedule.state_dict()
        self._load_from_checkpoint(str(good), self.model)
        self._load_optimizer_and_scheduler(str(good))
        schedule.load_state_dict(place)
        for group, rate in zip(self._plain_optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        self.interval.paused += time.perf_counter() - paused_at
        self.on_bad(f"{many}\nweights and optimizer go back to {good.name}; data and schedule go on")
