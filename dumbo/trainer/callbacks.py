"""What a session adds to transformers' loop, each at its moment of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback

from dumbo.trainer.sharded import wrapper_of

if TYPE_CHECKING:
    from dumbo.outputs.console import TrainingBar
    from dumbo.outputs.run_dir import RunDir


class Flow(TrainerCallback):
    """Where a checkpoint is saved, the numbers of that step are logged and the held-out loss is measured."""

    def __init__(self, evaluates: bool) -> None:
        self.evaluates = evaluates

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            control.should_log = True
            control.should_evaluate = self.evaluates


class Wrapped(TrainerCallback):
    """At the start of training: what is around the model must be what was asked for, and stands in run.json."""

    def __init__(self, trainer: Trainer, run: RunDir) -> None:
        self.trainer, self.run = trainer, run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = wrapper_of(self.trainer.model_wrapped)
        wanted = self.run.wrapped_in
        alone = self.run.ranks == 1 and found == "none"  # one rank has nothing to average
        assert found == wanted or alone, f"the model is wrapped in {found}, not in {wanted}"
        assert getattr(self.trainer.model_wrapped, "gradient_as_bucket_view", True), "DDP copies every gradient"
        self.run.update(parallel=found)


class StateMemory(TrainerCallback):
    """How much of a GPU weights, gradients and optimizer state take: what is allocated just before an optimizer step.

    Looked at from the second step on, when the optimizer has its state; activations are gone by then. No GPU: None.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.device.type == "cuda" and state.global_step:
            self.bytes = max(self.bytes or 0, torch.cuda.memory_allocated())

    @property
    def gib(self) -> float | None:
        return None if self.bytes is None else round(self.bytes / 2**30, 3)


class Progress(TrainerCallback):
    """Moves the bar also on steps that are not logged."""

    def __init__(self, bar: TrainingBar) -> None:
        self.bar = bar

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.step(state.global_step)
