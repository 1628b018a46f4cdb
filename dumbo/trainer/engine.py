"""What dumbo changes of transformers' Trainer: the one file whose methods bear the names of Trainer's own.

    class SftTrainer(Engine, Trainer): ...

Each calls the part that does the work, which calls Trainer's own where it needs it: `stepping.py` (a pass, its loss), `feeding.py`
(data), `shrinking.py` (memory that runs out), `measuring.py` (held-out loss), `rows.py` (logged numbers), `saving.py` (checkpoints).

Public methods overridden: create_accelerator_and_postprocess, create_optimizer, get_train_dataloader, get_eval_dataloader,
get_batch_samples, training_step, compute_loss, evaluate, log, floating_point_ops. Private ones, each with a test, within the
versions of transformers in pyproject.toml:

    _prepare_inputs            who moves a batch to the device tells where its long documents lie
    _get_grad_norm             what is not finite never reaches the weights
    _maybe_log_save_evaluate   a row that nothing waits for is read one step late
    _save_checkpoint           complete or absent, in dumbo's folder names
    _load_from_checkpoint, _load_optimizer_and_scheduler   shards, on any number of ranks

What is not overridden: the loop, the optimizer's step, the scheduler, gradient clipping, mixed precision.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from transformers import TrainerCallback

from dumbo.launch.world import World
from dumbo.patch.modules import base_of
from dumbo.prepare.store import Store
from dumbo.trainer.ahead import Ahead
from dumbo.trainer.bad_numbers import Watch
from dumbo.trainer.beside import Beside
from dumbo.trainer.checkpoint import Checkpoints
from dumbo.trainer.collate import Collate, Examples
from dumbo.trainer.feeding import Feeding
from dumbo.trainer.flops import flops_of
from dumbo.trainer.measuring import Measuring
from dumbo.trainer.progress import Counters, Interval, Meter
from dumbo.trainer.rows import Rows
from dumbo.trainer.sampler import GlobalBatches
from dumbo.trainer.saving import Saving, seconds_to_save
from dumbo.trainer.shrinking import Shrinking
from dumbo.trainer.stepping import Stepping
from dumbo.trainer.throughput import peak_flops

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


class Engine(Shrinking, Stepping, Feeding, Measuring, Rows, Saving):
    """The mixin. Call `equip` before `train`; memory that runs out is mended where `on_full` is set, inside `memory_told`."""

    taken_up: Path | None = None

    def equip(
        self,
        *,
        store: Store,
        examples: Examples,
        sampler: GlobalBatches,
        collate: Collate,
        eval_examples: Examples | None,
        eval_collate: Collate | None,
        checkpoints: Checkpoints,
        on_row: Callable[[dict[str, Any]], None],
        world: World,
        on_bad: Callable[[str], None] = lambda text: None,
        on_unsaved: Callable[[str], None] = lambda text: None,
        max_bad_steps: int = 5,
        save_beside: bool = False,
        prefetch: bool = False,
        master_weights: bool = False,
        cuda_graphs: bool | None = False,
    ) -> None:
        """Gives the trainer its data, its checkpoints and where its numbers go.

        Args:
            store: of the training documents.
            examples, sampler, collate: what is trained on, in which order, and as which tensors.
            eval_examples, eval_collate: what is held out; None: nothing.
            checkpoints: where state is saved.
            on_row: called with every row for metrics.jsonl.
            world: the ranks of the run.
            on_bad: told of skipped steps and of going back.
            on_unsaved: told of a checkpoint that could not be written while training goes on.
            max_bad_steps: so many skipped steps in a row lead back to the last checkpoint.
            save_beside: checkpoints are written while training goes on.
            prefetch: make batches one step ahead in a thread; loader workers do that already.
            master_weights: the optimizer steps on float32 masters of weights in half precision.
            cuda_graphs: forward and backward passes are captured and replayed; None: where launching them is what limits.
        """
        self.world = world
        self.store, self.examples, self.order, self.collate = store, examples, sampler, collate
        self.eval_examples, self.eval_collate = eval_examples, eval_collate
        self.checkpoints, self.on_row = checkpoints, on_row
        self.counters, self.interval = Counters(), Interval()
        self.watch = Watch(store, world, checkpoints.folder.parent)
        self.rows_late = self.args.device.type == "cuda"
        self.on_bad, self.on_unsaved, self.max_bad_steps = on_bad, on_unsaved, max_bad_steps
        self.pending: deque[NDArray[Any]] = deque()
        self.master_weights = master_weights
        self.cuda_graphs = cuda_graphs
        self.fixed_shapes = collate.room is not None
        self.ahead = Ahead(self.args.device) if prefetch and not self.args.dataloader_num_workers else None
        takes = inspect.signature(base_of(self.model).forward).parameters
        self.fused_loss = "skip_logits" in takes  # Liger's, chunked_loss
        self.save_estimate = seconds_to_save(self.model)
        self.best_before: tuple[int | None, float | None] = (None, None)
        self.save_stalls: list[float] = []
        self.beside = Beside(world.apart()) if save_beside else None
        self.meter = self._metered()
        self.add_callback(_Beginnings(self))

    def _metered(self) -> Meter:
        peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        return Meter(flops_of(self.model), peak * self.world.size if peak else None)

    # ---- Trainer's methods ------------------------------------------------------------------------------------

    def create_accelerator_and_postprocess(self) -> None:
        self.accelerate()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        return self.made_optimizer(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self.training_batches()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        return self.held_out_batches()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        return self.batches_of_step(epoch_iterator, num_batches, device)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.on_device(inputs)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        return self.pass_that_fits(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return self.loss_of(model, inputs, return_outputs, num_items_in_batch)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return self.guarded_norm(model, grad_norm)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.after_step(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.take_row(logs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        return self.measured(metric_key_prefix)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.save_checkpoint()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.weights_from(Path(resume_from_checkpoint), self.model if model is None else model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self.load_optimizer(checkpoint)

    def floating_point_ops(self, inputs: Any) -> int:
        """Trainer's own estimate walks all parameters every step and counts padding; ours is in `mfu`."""
        return 0


class _Beginnings(TrainerCallback):
    """At the start of training and of each epoch, and at the end."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)  # on resuming Trainer would keep the earlier log_every, save_every
        self.engine.rows_begin()
        self.engine.capture_from_now_on()
        if self.engine.evaluate_first:
            self.engine.evaluate_left_out()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.engine.read_late_row()
        self.engine.forget_graphs()
        if self.engine.ahead is not None:
            self.engine.ahead.close()
            self.engine.ahead = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # At the start of an epoch, and on resuming inside one. Trainer itself counts epochs in this way.
        self.engine.order.set_epoch(state.global_step // self.engine.order.steps())
