"""Training without numbers: two optimizer steps of a stand-in model on the longest batch, every tensor's bytes counted.

What the engine does in a step is done here in the same order on fake tensors: autocast, forward, loss, backward, clipping,
the optimizer's step. It takes seconds and no memory, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch._subclasses.fake_tensor import FakeTensorMode

from dumbo.patch.chunked_loss import takes_places
from dumbo.patch.modules import base_of, keep_cache
from dumbo.plan.ledger import Ledger
from dumbo.plan.stand_in import StandIn, fake_batch, make_fake
from dumbo.trainer import attention
from dumbo.trainer.masters import keep_masters

if TYPE_CHECKING:
    from transformers import TrainingArguments

STEPS = 2
"""The first makes the optimizer's state, the second has it from the start."""
ASSUMED = 8
"""Bytes of state a trained parameter, for an optimizer that cannot step on fake tensors: two numbers in float32."""


@dataclass(frozen=True)
class Counted:
    """What was held at the peak, in bytes by kind (`ledger.KINDS`), and what is held all the time.

    Attributes:
        at_peak: kind -> bytes.
        weights, gradients, optimizer: of the whole model, whether at the peak or not.
        assumed: whether the optimizer's state is an assumption.
    """

    at_peak: Mapping[str, int]
    weights: int
    gradients: int
    optimizer: int
    assumed: bool = False

    @property
    def peak(self) -> int:
        return sum(self.at_peak.values())


def rehearse(
    found: StandIn,
    batch: Mapping[str, Any],
    args: TrainingArguments,
    device: torch.device,
    *,
    layout: str,
    micro_batches: int,
    masters: bool = False,
    added_up_by_ddp: bool = False,
) -> Counted:
    """Trains two steps.

    Args:
        found: the model on the meta device; its tensors are fake ones afterwards.
        batch: of `collate.py`, without `documents`.
        args: transformers' arguments: which optimizer, which arithmetic.
        device: where it would train.
        layout: of the batch.
        micro_batches: of a step; two stand for more.
        masters: `trainer.master_weights`.
        added_up_by_ddp: gradients of weights with masters are in the weights' own dtype (`masters.py`).
    """
    model: Any = found.model
    base = base_of(model)
    keep_cache(base, False)
    if layout == "tokens":
        attention.register()
        base.set_attn_implementation(attention.NAME)
    mode, ledger = FakeTensorMode(), Ledger()
    with mode, ledger:
        make_fake(model, device)
        with ledger.making("activations"):
            fake = fake_batch(mode, batch, device)
        model.train()
        _watch_phases(base, ledger)
    if "cu_seq_lens_q" in fake:
        attention.remember(fake["cu_seq_lens_q"], _fake_plan(batch["cu_seq_lens_q"], mode, device))
    with mode, ledger, _moved_gradients(model, ledger), _experts_in_any_dtype():
        optimizer = _optimizer(model, args, ledger, masters, added_up_by_ddp)
        for _ in range(STEPS):
            for _ in range(micro_batches):
                _forward_and_backward(model, fake, args.bf16, ledger, device)
            with ledger.making("optimizer"):
                gradients = ledger.held["gradients"]
                if args.max_grad_norm:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                if optimizer is not None:
                    optimizer.step()
                    optimizer.zero_grad()
                else:
                    model.zero_grad()
    state = ledger.held["optimizer"]
    at_peak = dict(ledger.at_peak)
    if optimizer is None:
        state = ASSUMED * sum(p.numel() for p in model.parameters() if p.requires_grad)
        at_peak["optimizer"] += state
    return Counted(at_peak, ledger.held["weights"], gradients, state, assumed=optimizer is None)


def _forward_and_backward(
    model: Any, fake: Mapping[str, Any], bf16: bool, ledger: Ledger, device: torch.device
) -> None:
    """As the engine's `compute_loss` and Trainer's `training_step` do it."""
    inputs = dict(fake)
    if takes_places(model):
        inputs["skip_logits"] = True
    arithmetic: Any = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
    with ledger.making("activations"):
        with arithmetic:
            outputs = model(**inputs, num_items_in_batch=torch.ones((), dtype=torch.long, device=device))
        if bf16:  # accelerate's wrapper does so
            outputs = convert_outputs_to_fp32(_given)(outputs)
        loss = outputs["loss"]
    del outputs  # Trainer's own lives on as long
    with ledger.making("backward"):
        loss.backward()


def _given(outputs: Any) -> Any:
    return outputs


def _watch_phases(base: Any, ledger: Ledger) -> None:
    """What is made after the layers, and before backward, is logits and loss."""

    def begins(*arguments: Any) -> None:
        if ledger.kind == "loss":
            ledger.kind = "activations"

    def ends(*arguments: Any) -> None:
        if ledger.kind == "activations":
            ledger.kind = "loss"

    layers = base.base_model
    if layers is not base:
        layers.register_forward_pre_hook(begins)
        layers.register_forward_hook(ends)


@contextmanager
def _experts_in_any_dtype() -> Iterator[None]:
    """Torch's grouped product knows its result's shape for bfloat16 alone, though it multiplies float32 too: there the experts
    of transformers get one that makes what it makes and keeps what it keeps.

    Private in transformers, within the versions in pyproject.toml: integrations.moe._grouped_mm.
    """
    from transformers.integrations import moe

    own = moe._grouped_mm

    def product(input: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
        if weight.dtype == torch.bfloat16:
            return own(input, weight, offs)
        made: torch.Tensor = _GroupedProduct.apply(input.to(weight.dtype), weight)
        return made

    moe._grouped_mm = product
    try:
        yield
    finally:
        moe._grouped_mm = own


class _GroupedProduct(torch.autograd.Function):
    """The shapes of a grouped product: (S, K) rows, (experts, K, N) weights -> (S, N)."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(input, weight)
        return input.new_empty(input.shape[0], weight.shape[2])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        input, weight = ctx.saved_tensors
        return torch.empty_like(input), torch.empty_like(weight)


@contextmanager
def _moved_gradients(model: Any, ledger: Ledger) -> Iterator[None]:
    """A gradient that is summed up is counted as one, whatever made it."""

    def summed_up(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            ledger.move(parameter.grad, "gradients")

    handles = [p.register_post_accumulate_grad_hook(summed_up) for p in model.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _optimizer(
    model: Any, args: TrainingArguments, ledger: Ledger, masters: bool, added_up_by_ddp: bool
) -> torch.optim.Optimizer | None:
    """Trainer's; None for one that is not torch's own or transformers'."""
    from transformers import Trainer

    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    if not kind.__module__.startswith(("torch.optim", "transformers")):
        return None
    with ledger.making("optimizer"):
        optimizer = kind([p for p in model.parameters() if p.requires_grad], **options)
        if masters:
            keep_masters(optimizer, added_up_by_ddp=added_up_by_ddp)
    return optimizer


def _fake_plan(bounds: torch.Tensor, mode: FakeTensorMode, device: torch.device) -> Any:
    """How the documents are gathered, its numbers left out."""
    real = attention.plan_of(bounds.tolist(), torch.device("cpu"))
    with mode:
        take, back = (torch.empty(t.shape, dtype=t.dtype, device=device) for t in (real.take, real.real))
    return attention.Plan(take, back, real.shapes)
