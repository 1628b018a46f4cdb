"""Writing a checkpoint beside training: the state is copied to the CPU's memory, a thread writes it from there.

    training waits    until an earlier checkpoint is written, and while the state is copied (the stall)
    the thread        writes the files, their hashes and the manifest, brings them to the disk, renames

torch's asynchronous checkpointing (`torch.distributed.checkpoint.async_save`) does this for its own format; here the
same two steps serve every form a checkpoint has. Between ranks the thread speaks over a group of its own: what two
threads send over one group would meet in any order.

Source: https://docs.pytorch.org/tutorials/recipes/distributed_async_checkpoint_recipe.html
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from dumbo.errors import RunFailed
from dumbo.launch.world import World


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

    def start(self, work: Callable[[], None]) -> None:
        """Begins; the piece before it must have been settled."""
        assert self._thread is None, "settle first"
        self._thread = threading.Thread(target=self._do, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    def _do(self, work: Callable[[], None]) -> None:
        began = time.perf_counter()
        try:
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


class HostCopy:
    """Copies tensors to the CPU's memory, into the same (pinned) buffers each time: allocating them is the slow part."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def __call__(self, tree: Any, name: str) -> Any:
        """A copy of nested dicts, lists and tuples in which every tensor is one on the CPU that nothing else changes.

        Tensors that share memory (tied weights) share it in the copy. Valid until the next call with this name.
        """
        found: dict[tuple[int, torch.Size], torch.Tensor] = {}
        copied = self._copy(tree, name, found)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
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
        buffer.copy_(tensor, non_blocking=True)
        found[key] = buffer
        return buffer
