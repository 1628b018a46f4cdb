"""bf16 weights to compute with, float32 masters of them for the optimizer (Micikevicius et al. 2018, arXiv:1710.03740).

Part of the engine (`trainer.master_weights`). An update is mostly smaller than half a step of bf16 at its weight: in bf16
alone it would be rounded away. The optimizer is torch's own; what it steps on are the masters:

    before its step   gradients of the weights become those of their masters, in float32
    after it          the weights become their masters, rounded
    its state         holds the masters too, so that a resumed run goes on from the same numbers

A step that the optimizer skips on the device (`bad_numbers.py`) leaves masters and weights as they are.
"""

from __future__ import annotations

from typing import Any

import torch

from dumbo.errors import UserError

HALF = (torch.bfloat16, torch.float16)
KEY = "masters"
"""Their place in the optimizer's state_dict, in the order of its parameters."""


def keep_masters(optimizer: torch.optim.Optimizer) -> int:
    """Gives an optimizer without state float32 masters for its parameters in half precision; returns how many.

    Raises:
        UserError: it cannot skip a step on the device.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        raise UserError(
            "trainer.master_weights needs a fused optimizer.\n  Write trainer.optimizer=adamw_torch_fused, or leave it out"
        )
    assert not optimizer.state, "the optimizer has stepped on the weights themselves"
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

    @torch.no_grad()
    def take_gradients(*arguments: Any) -> None:
        found = [
            (master, weight.grad) for weight, master in zip(weights, masters, strict=True) if weight.grad is not None
        ]
        if not found:
            return
        exact = [torch.empty_like(master) for master, _ in found]
        torch._foreach_copy_(exact, [gradient for _, gradient in found])
        for (master, _), gradient in zip(found, exact, strict=True):
            master.grad = gradient

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


def stepped_on(parameter: Any) -> Any:
    """The model's parameter that an optimizer's parameter stands for."""
    return getattr(parameter, "master_of", parameter)
