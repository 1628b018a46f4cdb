"""A pass of a micro batch: its loss over the whole step's trained tokens, what is added up, what is not finite, CUDA graphs.

Methods of Trainer called: create_accelerator_and_postprocess, create_optimizer, training_step, compute_loss, _get_grad_norm,
_prepare_inputs; accelerate's AcceleratorState._reset_state.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from numpy.typing import NDArray

from dumbo.errors import UserError
from dumbo.interfaces import IGNORE
from dumbo.patch.tile_attention import in_cudnn
from dumbo.trainer.bad_numbers import Watch, poisoned
from dumbo.trainer.collate import leave_documents_free
from dumbo.trainer.graphs import Graphs
from dumbo.trainer.masters import add_up_over_ranks, keep_masters
from dumbo.trainer.router import router_part
from dumbo.trainer.sampler import GlobalBatches
from dumbo.trainer.sharded import compute_in_bf16, forget_sharding, is_dtensor, shard_on_cpu, wrapper_of

if TYPE_CHECKING:
    from transformers import Trainer

    from dumbo.trainer.saving import Saving

    class _Base(Saving, Trainer):
        pass
else:
    _Base = object


class Stepping(_Base):
    """A mixin over Trainer, beneath `Engine`, whose `equip` sets what stands here without a value."""

    order: GlobalBatches
    watch: Watch
    pending: deque[NDArray[Any]]
    master_weights: bool
    fixed_shapes: bool
    fused_loss: bool
    cuda_graphs: bool | None
    graphs: Graphs | None = None
    graphs_said: str | None = None

    def accelerate(self) -> None:
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

    def made_optimizer(self, *args: Any, **kwargs: Any) -> Any:
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

    def counted_pass(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of a micro batch."""
        # loss_of divides by the trained tokens of the whole global batch: Trainer must not divide once more.
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

    def guarded_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm that is logged; what is not finite must not get into the weights."""
        norm = super()._get_grad_norm(model, grad_norm)
        if is_dtensor(norm):
            norm = norm.full_tensor()
        if self.accelerator.scaler is None:  # fp16's own scaler looks after it
            self.watch.guard(self.state.global_step + 1, norm, self._plain_optimizer)
        return norm

    def loss_of(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
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
