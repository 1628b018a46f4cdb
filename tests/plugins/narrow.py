"""A patch for tests of memory, as a user's plugin (`--config-dir=tests/plugins`): it fails where memory fails in life."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dumbo.interfaces import Stage

SAYS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.00 GiB is free."
)
MODELS: list[weakref.ref[Any]] = []
"""Those that it was applied to, in this process."""
LEFT: list[int] = []
"""How many of them were still in memory each time."""
HOOKS: list[Any] = []


@dataclass(frozen=True, kw_only=True)
class Narrow:
    """A model that takes at most so many rows (B of (B, T)).

    Args:
        rows: in a micro batch.
        where: what finds no memory.
        after: so many training passes take any number of rows.
        rank: the only one of which this is true; null: of all.
        more_mib: instead of all that, the process gets so many MiB more than it has at its first training pass.
        gpu_mib: likewise, and torch may take so many MiB of the GPU.
    """

    rows: int = 2
    where: Literal["forward", "backward", "step", "evaluation"] = "forward"
    after: int = 0
    rank: int | None = None
    more_mib: int | None = None
    gpu_mib: int | None = None

    stage: ClassVar[Stage] = Stage.LOAD

    def apply(self, model: Any) -> Any:
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        LEFT.append(sum(earlier() is not None for earlier in MODELS))
        MODELS.append(weakref.ref(model))
        if self.rank is not None and self.rank != int(os.environ.get("RANK", "0")):
            return model
        room = _Room(self)
        model.register_forward_pre_hook(
            room.limited if self.more_mib or self.gpu_mib else room.forward, with_kwargs=True
        )
        model.get_input_embeddings().register_forward_hook(room.embedded)
        while HOOKS:  # of an earlier model of this process
            HOOKS.pop().remove()
        HOOKS.append(register_optimizer_step_pre_hook(room.stepping))
        return model


class _Room:
    def __init__(self, narrow: Narrow) -> None:
        self.narrow, self.passes, self.full = narrow, 0, False

    def forward(self, module: Any, arguments: Any, kwargs: Any) -> None:
        self.passes += module.training
        self.full = len(kwargs["input_ids"]) > self.narrow.rows and self.passes > self.narrow.after
        self._fail_if("forward" if module.training else "evaluation")

    def embedded(self, module: Any, arguments: Any, output: Any) -> Any:
        import torch

        class Backward(torch.autograd.Function):
            """Identity; what fails in its backward fails when most gradients are there."""

            @staticmethod
            def forward(ctx: Any, tensor: Any) -> Any:
                return tensor.view_as(tensor)

            @staticmethod
            def backward(ctx: Any, *gradients: Any) -> Any:
                self._fail_if("backward")
                return gradients[0]

        return Backward.apply(output)

    def stepping(self, optimizer: Any, *arguments: Any) -> None:
        self._fail_if("step")

    def _fail_if(self, where: str) -> None:
        import torch

        if self.full and self.narrow.where == where:
            raise torch.OutOfMemoryError(SAYS)

    def limited(self, module: Any, arguments: Any, kwargs: Any) -> None:
        if not module.training or self.passes:
            return
        self.passes += 1
        if self.narrow.gpu_mib:
            import torch

            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties().total_memory
            torch.cuda.set_per_process_memory_fraction(self.narrow.gpu_mib * 2**20 / total)
        else:
            import resource
            from pathlib import Path

            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + self.narrow.more_mib * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
