"""bf16 weights to compute with, float32 masters of them for the optimizer (Micikevicius et al. 2018, arXiv:1710.03740).

Part of the engine (`trainer.master_weights`). An update is mostly smaller than half a step of bf16 at its weight: in bf16
alone it would be rounded away. The optimizer is torch's own; what it steps on are the masters:

    micro batches     their gradients are added up in float32 (bf16 would lose what is small beside the sum)
    before its step   the sum becomes the masters' gradient
    after it          the weights become their masters, rounded
    its state         holds the masters too, so that a resumed run goes on from the same numbers

A step that the optimizer skips on the device (`bad_numbers.py`) leaves masters and weights as they are.
Between ranks DDP adds up in buckets of the weights' own dtype, which is right for one micro batch a rank and step. Where
there are more, each rank adds up its own in float32 and DDP is kept from it; the sums are added up once, when the last one
is there (`add_up_over_ranks`): exact, but not beside the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from dumbo.errors import UserError

HALF = (torch.bfloat16, torch.float16)
KEY = "masters"
"""Their place in the optimizer's state_dict, in the order of its parameters."""


def refuse(precision: str, wrapped_in: str) -> None:
    """What is known before weights are loaded.

    Args:
        precision: "bf16" or "fp32", resolved.
        wrapped_in: none, DDP or FSDP2.

    Raises:
        UserError: there would be nothing in half precision.
    """
    if precision != "bf16":
        raise UserError(
            f"trainer.master_weights is for bf16, and the arithmetic here is {precision}.\n"
            "  Write trainer.precision=bf16, or leave trainer.master_weights out"
        )
    if wrapped_in == "FSDP2":
        raise UserError(
            "trainer.master_weights is not for sharded models, whose weights are float32 already.\n"
            "  Leave it out, or write launch=ddp"
        )


def keep_masters(optimizer: torch.optim.Optimizer, *, added_up_by_ddp: bool = False) -> int:
    """Gives an optimizer without state float32 masters for its parameters in half precision; returns how many.

    Args:
        added_up_by_ddp: gradients are of the weights' own dtype, as DDP has them.

    Raises:
        UserError: it cannot skip a step on the device, or none of its parameters is in half precision.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        raise UserError(
            "trainer.master_weights needs a fused optimizer.\n  Write trainer.optimizer=adamw_torch_fused, or leave it out"
        )
    assert not optimizer.state, "the optimizer has stepped on the weights themselves"
    weights, masters = _put_in_place(optimizer)
    if not masters:
        raise UserError(
            "trainer.master_weights: nothing that trains is in half precision (adapters and model.dtype=float32 are float32).\n"
            "  Leave it out: those weights are their own masters"
        )
    if not added_up_by_ddp:
        for weight in weights:
            weight.grad_dtype = torch.float32

    @torch.no_grad()
    def take_gradients(*arguments: Any) -> None:
        found = [
            (master, weight.grad) for weight, master in zip(weights, masters, strict=True) if weight.grad is not None
        ]
        if not found:
            return
        for master, gradient in found:
            master.grad = gradient.float()  # without a copy where it was added up so

    @torch.no_grad()
    def round_weights(*arguments: Any) -> None:
        torch._foreach_copy_(weights, masters)
        for master in masters:
            master.grad = None

    def with_masters(own: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, KEY: [master.detach() for master in masters]}

    @torch.no_grad()
    def take_masters(own: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """A checkpoint without them (an earlier run without masters) leaves those of the loaded weights."""
        stored = state.get(KEY) or weights
        for weight, master, kept in zip(weights, masters, stored, strict=True):
            master.copy_(kept)
            assert torch.equal(master.to(weight), weight), "the masters of another checkpoint than the weights"

    optimizer.register_step_pre_hook(take_gradients)
    optimizer.register_step_post_hook(round_weights)
    optimizer.register_state_dict_post_hook(with_masters)
    optimizer.register_load_state_dict_pre_hook(take_masters)
    return len(masters)


def _put_in_place(optimizer: torch.optim.Optimizer) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The weights in half precision, and their masters, which the optimizer has from now on."""
    weights: list[torch.Tensor] = []
    masters: list[torch.Tensor] = []
    for group in optimizer.param_groups:
        for place, weight in enumerate(group["params"]):
            if weight.dtype in HALF:
                master: Any = torch.nn.Parameter(weight.detach().float())
                master.master_of = weight
                group["params"][place] = master
                weights.append(weight)
                masters.append(master)
    return weights, masters


def add_up_over_ranks(parameters: Iterable[torch.nn.Parameter]) -> None:
    """The mean over ranks of each gradient, in its own dtype, in its place. All ranks call this."""
    import torch.distributed as dist

    gradients = []
    for parameter in parameters:
        if parameter.grad is None:  # on this rank: the others have one
            parameter.grad = torch.zeros_like(parameter, dtype=getattr(parameter, "grad_dtype", None))
        gradients.append(parameter.grad)
    on_their_way = [dist.all_reduce(gradient, async_op=True) for gradient in gradients]
    for work in on_their_way:
        work.wait()
    torch._foreach_div_(gradients, float(dist.get_world_size()))


def idle_buckets(parameters: Iterable[torch.nn.Parameter]) -> int:
    """Bytes of DDP's buckets, which it makes in any case, where the gradients lie outside of them in float32."""
    return sum(p.numel() * p.element_size() for p in parameters if p.requires_grad and p.dtype in HALF)


def stepped_on(parameter: Any) -> Any:
    """The model's parameter that an optimizer's parameter stands for."""
    return getattr(parameter, "master_of", parameter)
