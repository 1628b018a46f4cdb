"""What dumbo changes of transformers' Trainer, in one mixin that any subclass of Trainer can take.

    class SftTrainer(Engine, Trainer): ...

Public methods overridden: training_step, compute_loss, floating_point_ops, create_accelerator_and_postprocess,
create_optimizer. Private ones, each with a test, within the versions of transformers
in pyproject.toml:

    _get_grad_norm        what is not finite never reaches the weights

and those of the data (`feeding.py`), of the held-out loss (`measuring.py`), of the logged numbers (`rows.py`), of saving and
taking up (`saving.py`).

Private ones called: _prepare_inputs; accelerate's AcceleratorState._reset_state.

What is not overridden: the loop, the optimizer and scheduler, gradient clipping, mixed precision.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from numpy.typing import NDArray
from transformers import TrainerCallback

from dumbo.errors import UserError
from dumbo.interfaces import IGNORE
from dumbo.launch.world import World
from dumbo.patch.modules import base_of
from dumbo.patch.tile_attention import in_cudnn
from dumbo.prepare.store import Store
from dumbo.trainer.ahead import Ahead
from dumbo.trainer.bad_numbers import Watch, poisoned
from dumbo.trainer.beside import Beside
from dumbo.trainer.checkpoint import Checkpoints
from dumbo.trainer.collate import Collate, Examples, leave_documents_free
from dumbo.trainer.feeding import Feeding
from dumbo.trainer.flops import flops_of
from dumbo.trainer.graphs import Graphs
from dumbo.trainer.masters import add_up_over_ranks, keep_masters
from dumbo.trainer.measuring import Measuring
from dumbo.trainer.progress import Counters, Interval, Meter
from dumbo.trainer.router import router_part
from dumbo.trainer.rows import Rows
from dumbo.trainer.sampler import GlobalBatches
from dumbo.trainer.saving import Saving, seconds_to_save
from dumbo.trainer.sharded import compute_in_bf16, forget_sharding, is_dtensor, shard_on_cpu, wrapper_of
from dumbo.trainer.throughput import peak_flops


class Engine(Feeding, Measuring, Rows, Saving):
    """The mixin. Call `equip` before `train`."""

    taken_up: Path | None = None
    graphs: Graphs | None = None
    graphs_said: str | None = None

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

    def create_accelerator_and_postprocess(self) -> None:
        """Accelerate's own, and FSDP2 on CPU ranks too, where it would put DDP around the model without a word."""
        AcceleratorState._reset_state()  # of an earlier run in this process, which may have been sharded or bf16
        if self.args.fsdp_plugin_args is None:
            forget_sharding()
        super().create_accelerator_and_postprocess()
        if self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.gradient_as_bucket_view = (
                True  # else every gradient is there twice, and copied
            )
        if self.args.fsdp_plugin_args is not None and self.args.device.type == "cpu":
            shard_on_cpu(self.accelerator, self.args.fsdp_plugin_args)
            self.is_fsdp_enabled = True
        if self.is_fsdp_enabled and self.args.bf16:
            compute_in_bf16(self.accelerator)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's own, without groups that hold nothing (with LoRA no bias or norm trains): torch cannot restore them."""
        optimizer: Any = super().create_optimizer(*args, **kwargs)
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        if self.master_weights:
            if self.is_fsdp_enabled:
                raise UserError("trainer.master_weights is not for sharded models, whose weights are float32 already.")
            by_ddp = dist.is_available() and dist.is_initialized() and not self._adds_up_itself
            keep_masters(optimizer, added_up_by_ddp=by_ddp)
        return optimizer

    @property
    def _adds_up_itself(self) -> bool:
        """Whether micro batches are added up in float32, and DDP has no part in it (`masters.py`)."""
        return self.master_weights and self.order.batch.accumulation > 1

    # ---- loss -------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of a micro batch."""
        # compute_loss divides by the trained tokens of the whole global batch: Trainer must not divide once more.
        self.current_gradient_accumulation_steps = 1
        if self._adds_up_itself and wrapper_of(model) == "DDP":
            with model.no_sync():
                loss = super().training_step(model, inputs, num_items_in_batch)
            if self.accelerator.sync_gradients:  # the step's last micro batch
                add_up_over_ranks(p for p in model.parameters() if p.requires_grad)
        elif self.graphs is not None:
            loss = self.graphs.run(model, self._prepare_inputs(inputs), num_items_in_batch)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        self.watch.add(self.state.global_step + 1, self.pending.popleft(), loss)
        return torch.where(torch.isfinite(loss), loss, torch.zeros_like(loss))  # Trainer's sum must stay a number

    def capture_from_now_on(self) -> None:
        """Graphs are for training alone: not for the proofs before it, whose batches come once."""
        if self.cuda_graphs is not False:
            model: Any = self.model
            self.graphs = Graphs(model, super().training_step, always=bool(self.cuda_graphs), left=self._passes_left,
                                 in_cudnn=in_cudnn(model))  # fmt: skip

    def _passes_left(self) -> int:
        return (self.state.max_steps - self.state.global_step) * self.args.gradient_accumulation_steps

    def forget_graphs(self) -> None:
        """What is bound to batches of this size, and to these gradients."""
        if self.graphs is not None:
            self.graphs_said, self.graphs = self.graphs.facts(), None

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm that is logged; what is not finite must not get into the weights."""
        norm = super()._get_grad_norm(model, grad_norm)
        if is_dtensor(norm):
            norm = norm.full_tensor()
        if self.accelerator.scaler is None:  # fp16's own scaler looks after it
            self.watch.guard(self.state.global_step + 1, norm, self._plain_optimizer)
        return norm

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum of the tokens' losses over `num_items_in_batch`.

        transformers divides inside models that take that number; for others it is done here. Where output head and
        loss are one (Liger), that is so in evaluation too: all logits are never held at once.
        """
        assert num_items_in_batch is not None
        ranks = self.accelerator.num_processes
        if self.fixed_shapes:
            leave_documents_free(inputs)
        if self.model_accepts_loss_kwargs:
            if self.fused_loss and not return_outputs and self.label_smoother is None:
                inputs = {**inputs, "skip_logits": True}
            labels = inputs["labels"]
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            part = router_part(model, outputs, labels, num_items_in_batch, held=self.label_smoother is None)
            loss = poisoned(loss if part is None else loss + part * ranks)
            return (loss, outputs) if return_outputs else loss
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs.logits[:, :-1].float()
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum",
            label_smoothing=self.args.label_smoothing_factor,
        )  # fmt: skip
        mean = total / num_items_in_batch
        part = router_part(model, outputs, labels, num_items_in_batch, held=False)
        loss = poisoned((mean if part is None else mean + part) * ranks)
        return (loss, outputs) if return_outputs else loss

    # ---- numbers ----------------------------------------------------------------------------------------------

    def floating_point_ops(self, inputs: Any) -> int:
        """Trainer's own estimate walks all parameters every step and counts padding; ours is in `mfu`."""
        return 0


class _Beginnings(TrainerCallback):
    """At the start of training and of each epoch, and at the end."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)  # on resuming Trainer would keep the earlier log_every, save_every
        self.engine.rows_wait_no_more()
        self.engine.capture_from_now_on()
        self.engine.interval = Interval()
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
