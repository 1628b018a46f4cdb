"""Writing a checkpoint beside training: the state is copied to the CPU's memory, a thread writes it from there.

    training waits    until an earlier checkpoint is written, and while the state is copied (the stall)
    the thread        writes the files, their hashes and the manifest, brings them to the disk, renames

torch's asynchronous checkpointing (`torch.distributed.checkpoint.async_save`) does this for its own format; here the
same two steps serve every form a checkpoint has. Between ranks the thread speaks over a group of its own: what two
threads send over one group would meet in any order.

Source: https://docs.pytorch.org/tutorials/recipes/distributed_async_checkpoint_recipe.html
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from dumbo.errors import RunFailed
from dumbo.launch.world import World
from dumbo.trainer.host_memory import available_memory


@dataclass
class Beside:
    """At most one piece of work beside training.

    Args:
        world: the ranks, over a group that nothing else uses (`World.apart`).

    Attributes:
        seconds: how long the last piece took; None before the first has ended.
    """

    world: World
    copy: HostCopy = field(default_factory=lambda: HostCopy())
    seconds: float | None = None
    _thread: threading.Thread | None = None
    _failure: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a piece is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        """Begins; the piece before it must have been settled."""
        assert self._thread is None, "settle first"
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._thread = threading.Thread(target=self._do, args=(work, device), name="checkpoint", daemon=True)
        self._thread.start()

    def _do(self, work: Callable[[], None], device: int | None) -> None:
        began = time.perf_counter()
        try:
            if device is not None:
                torch.cuda.set_device(device)  # a thread's own: torch's writer would make a context on the first GPU
            work()
        except BaseException as failure:  # raised again where training waits for it
            self._failure = failure
        self.seconds = time.perf_counter() - began

    def settle(self) -> RunFailed | None:
        """Waits for the piece under way. Returns why it could not be written, the same on every rank.

        Raises:
            BaseException: it failed in a way that the ranks could not agree on (one of them is gone).
        """
        if self._thread is None:
            return None
        self._thread.join()
        self._thread, failure, self._failure = None, self._failure, None
        if failure is None or isinstance(failure, RunFailed):
            return failure
        raise failure

    def give(self, seconds: float | None) -> None:
        """Waits at most so long, whatever comes of it."""
        if self._thread is not None:
            self._thread.join(seconds)


def room_for(needed: float, world: World) -> bool:
    """Whether every rank's machine has memory for a copy of `needed` bytes, the same answer on all ranks.

    Twice that must be available: torch rounds pinned buffers up to powers of two.
    """
    free = available_memory()
    local = sum(1 for other in world.gather(os.uname().nodename) if other == os.uname().nodename)
    return all(world.gather(free is None or 2 * needed * local < free))


class HostCopy:
    """Copies tensors to the CPU's memory, whole ones into the same (pinned) buffers each time: allocating is what takes
    long. Shards of DTensors are copied into fresh memory."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def __call__(self, tree: Any, name: str) -> Any:
        """A copy of nested dicts, lists and tuples in which every tensor is one on the CPU that nothing else changes.

        Tensors that share memory (tied weights) share it in the copy. Valid until the next call with this name.
        """
        found: dict[tuple[int, torch.Size], torch.Tensor] = {}
        copied = self._copy(tree, name, found)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # copies into pinned memory are only ordered
        return copied

    def _copy(self, value: Any, name: str, found: dict[tuple[int, torch.Size], torch.Tensor]) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value.detach(), name, found)
        if isinstance(value, dict):
            return {key: self._copy(each, f"{name}.{key}", found) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copy(each, f"{name}.{place}", found) for place, each in enumerate(value))
        return value

    def _tensor(
        self, tensor: torch.Tensor, name: str, found: dict[tuple[int, torch.Size], torch.Tensor]
    ) -> torch.Tensor:
        if type(tensor) is not torch.Tensor:  # a shard of a DTensor: its local part is copied with it
            return tensor.cpu() if tensor.device.type != "cpu" else tensor.clone()
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and key in found:
            return found[key]
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
            self._buffers[name] = buffer
        buffer.copy_(tensor, non_blocking=buffer.is_pinned())
        found[key] = buffer
        return buffer
