"""Whether an optimizer's step can be skipped on the device, by `optimizer.found_inf`, without the CPU knowing the norm.

Fused optimizers of torch do it for torch's GradScaler (https://docs.pytorch.org/docs/stable/amp.html). Beside sharded
weights (DTensor) the flag is a plain tensor, and whether the fused kernel takes both depends on torch's version and on
the optimizer: a tiny one of the same kind is asked, once, on the same device and mesh. It talks to no other rank.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

_found: dict[tuple[type, str], bool] = {}
"""(optimizer, kind of device) -> what its probe said."""


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `found_inf` (a scalar on the device; 1: skip) decides about this optimizer's next step."""
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    sharded = _a_sharded(optimizer)
    if sharded is None:
        return True
    key = type(optimizer), sharded.device_mesh.device_type
    if key not in _found:
        _found[key] = _tried(optimizer, sharded)
    return _found[key]


def _a_sharded(optimizer: torch.optim.Optimizer) -> Any:
    from torch.distributed.tensor import DTensor

    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return next((parameter for parameter in parameters if isinstance(parameter, DTensor)), None)


def _tried(optimizer: torch.optim.Optimizer, like: Any) -> bool:
    """Two steps of an optimizer of this kind on a tiny parameter that is sharded like `like`: one to skip, one to make."""
    from torch.distributed.tensor import DTensor

    def tiny() -> Any:
        local = torch.ones(2, device=like.to_local().device)
        return DTensor.from_local(local, like.device_mesh, like.placements, run_check=False)

    parameter: Any = torch.nn.Parameter(tiny())
    parameter.grad = tiny()
    takes = inspect.signature(type(optimizer)).parameters
    defaults = {name: value for name, value in optimizer.defaults.items() if name in takes}
    own: Any = type(optimizer)([parameter], **{**defaults, "lr": 0.5})
    after = []
    for flag in (1.0, 0.0):
        own.found_inf = torch.full((), flag, device=parameter.to_local().device)
        try:
            own.step()
        except RuntimeError:  # plain and sharded tensors in one operation
            return False
        after.append(bool((parameter.detach().to_local() == 1).all()))
    return after == [True, False]
