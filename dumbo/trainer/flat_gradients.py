"""Adding up gradients over ranks where DDP has no part in it, and gradients that lie side by side in one tensor a dtype.

Used by `graphs.py`, which writes every gradient to the same place in each pass, and by `engine.py` (`masters.py` says when).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

ALIGNED = 128
"""Bytes: each begins at a multiple, as tensors of torch's allocator do, so that kernels read them as wide."""


class FlatGradients:
    """Room for the gradients of parameters, zero at first.

    Attributes:
        views: one a parameter, of its shape, in the dtype of its gradient.
        whole: the tensors that they are views of, one a dtype and device.
    """

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        sizes: dict[Any, int] = {}
        begins: list[tuple[Any, int]] = []
        for parameter in parameters:
            dtype = dtype_of_gradient(parameter)
            kind = (dtype, parameter.device)
            begins.append((kind, sizes.get(kind, 0)))
            step = ALIGNED // dtype.itemsize
            sizes[kind] = begins[-1][1] + -(-parameter.numel() // step) * step
        made = {kind: torch.zeros(size, dtype=kind[0], device=kind[1]) for kind, size in sizes.items()}
        self.whole = list(made.values())
        self.views = [
            made[kind][begin : begin + parameter.numel()].view(parameter.shape)
            for parameter, (kind, begin) in zip(parameters, begins, strict=True)
        ]

    def zero(self) -> None:
        for tensor in self.whole:
            tensor.zero_()

    def add_up_over_ranks(self) -> None:
        """Each gradient becomes its mean over the ranks, in its own dtype. All ranks call this."""
        _mean(self.whole)


def add_up_over_ranks(parameters: Iterable[torch.nn.Parameter]) -> None:
    """The mean over ranks of each gradient, in its own dtype, in its place. All ranks call this."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:  # on this rank: the others have one
            parameter.grad = torch.zeros_like(parameter, dtype=dtype_of_gradient(parameter))
        gradients.append(parameter.grad)
    _mean(gradients)


def _mean(tensors: list[torch.Tensor]) -> None:
    import torch.distributed as dist

    on_their_way = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    for work in on_their_way:
        work.wait()
    torch._foreach_div_(tensors, float(dist.get_world_size()))


def dtype_of_gradient(parameter: torch.Tensor) -> torch.dtype:
    """Its own dtype, unless it asks for another (`masters.py`)."""
    return getattr(parameter, "grad_dtype", None) or parameter.dtype
