"""The held-out loss: a mean over trained tokens by all ranks together, and the evaluation that a stop left out.

Private methods of Trainer called: _prepare_inputs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerState

from dumbo.trainer.device_clock import drain
from dumbo.trainer.feeding import trained_tokens
from dumbo.trainer.saving import STATE

if TYPE_CHECKING:
    from transformers import Trainer

    from dumbo.launch.world import World
    from dumbo.trainer.progress import Counters, Interval
    from dumbo.trainer.saving import Saving

    class _Base(Saving, Trainer):
        pass
else:
    _Base = object


class Measuring(_Base):
    """A mixin over Trainer, beneath `Engine`, whose `equip` sets what stands here without a value.

    Attributes:
        held_out: (step, loss) of the last evaluation.
        evaluate_first: whether the step that is gone on from lacks its evaluation.
        eval_seconds: what the last evaluation took.
    """

    held_out: tuple[int, float] | None = None
    evaluate_first = False
    eval_seconds = 0.0
    world: World
    counters: Counters
    interval: Interval

    def measured(self, prefix: str) -> dict[str, float]:
        """Loss on the held-out documents: a mean over trained tokens, whatever the batch size."""
        began = time.perf_counter()
        drain(self.args.device)  # steps that were launched before: no part of the pause
        paused_at = time.perf_counter()
        metrics = {f"{prefix}_loss": self.held_out_loss()}
        self.held_out = (self.state.global_step, metrics[f"{prefix}_loss"])
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.eval_seconds = time.perf_counter() - began
        self.interval.paused += time.perf_counter() - paused_at
        return metrics

    def held_out_loss(self) -> float:
        """Measured by all ranks together; the random state stays as it is."""
        model: Any = self.model
        was_training = model.training
        model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        tokens = 0  # of this rank
        one = torch.ones((), device=self.args.device)
        with torch.no_grad():
            for batch in self.get_eval_dataloader():
                tokens += trained_tokens(batch)
                inputs = self._prepare_inputs({key: value for key, value in batch.items() if key != "documents"})
                with self.compute_loss_context_manager():
                    loss: Any = self.compute_loss(model, inputs, num_items_in_batch=one)
                    total += (
                        loss.detach().double() / self.args.world_size
                    )  # compute_loss answers for the mean over ranks
        model.train(was_training)
        summed, counted = self.world.total(torch.stack([total.cpu(), torch.tensor(float(tokens)).double()])).tolist()
        assert counted, "nothing is held out that could be measured"
        return float(summed / counted)

    # ---- going on ---------------------------------------------------------------------------------------------

    def take_finished(self, checkpoint: Path) -> None:
        """Instead of `train`, when the last step is in a checkpoint already: its weights and Trainer's state."""
        self.load_weights(checkpoint)
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self.accelerator.prepare_model(self.model, evaluation_mode=True)  # the arithmetic (bf16) of training
        if self.evaluate_first:
            self.evaluate_left_out()

    def evaluate_left_out(self) -> None:
        """The evaluation that a stop left out at the step gone on from; that step may be the best one."""
        self.evaluate()
        self.counters.note_saved(self.state.global_step, self.held_out)
