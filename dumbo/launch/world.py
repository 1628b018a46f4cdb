"""The processes of a run as each of them sees the others: how many, which one am I, and agreeing on small things.

Everything here goes over the CPU (gloo), beside the GPUs' own channel; what is large (gradients, weights) is the
trainer's. A run of one process has a World of size 1, in which nothing is sent.

Source: torch.distributed, https://docs.pytorch.org/docs/stable/distributed.html
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError

if TYPE_CHECKING:
    import torch

LONG = timedelta(days=2)
"""For waiting while another process prepares the data; a dead process is noticed otherwise."""
DISK = timedelta(hours=1)
"""For waiting while another process writes."""
SETTLES = 0.2
"""Seconds in which gloo's threads let go of the last exchange."""


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: this one, from 0; rank 0 writes the run's folder.
        size: how many.
        local_rank: this one among those of its machine.
        group: torch's process group over the CPU; None in a world of one.
        patient: a time -> a group in which a rank may wait so long.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: Any = None
    patient: Mapping[timedelta, Any] = field(default_factory=dict)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """Rank 0's value (small, picklable), on every rank."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in their order, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def total(self, numbers: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks of a tensor on the CPU."""
        if self.size > 1:
            import torch.distributed as dist

            numbers = numbers.clone()
            dist.all_reduce(numbers, group=self.group)
        return numbers

    def barrier(self, timeout: timedelta | None = None) -> None:
        """Waits for all ranks.

        Args:
            timeout: LONG or DISK; None: as long as any exchange may take. What gloo is told here holds on rank 0 alone, the
                others wait for as long as their group may: so each of these times has a group of its own.
        """
        if self.size > 1:
            import torch.distributed as dist

            group = self.group if timeout is None else self.patient.get(timeout, self.group)
            dist.monitored_barrier(group, timeout=timeout)

    def apart(self, timeout: timedelta = DISK) -> World:
        """The same ranks over a CPU group of its own, for a second thread. Called on every rank."""
        if self.size == 1:
            return self
        import torch.distributed as dist

        return replace(self, group=dist.new_group(backend="gloo", timeout=timeout), patient={})

    def one_first(self) -> AbstractContextManager[None]:
        """The block on the first rank of each machine, then on the others: they find on disk what the first has made."""
        return self._first(self.local_rank == 0)

    def main_first(self) -> AbstractContextManager[None]:
        """The block on rank 0, then on the others: what it finds out may take longer than an exchange."""
        return self._first(self.main)

    @contextmanager
    def _first(self, first: bool) -> Iterator[None]:
        """A first rank that fails must not leave the others waiting: they go on, and fail for themselves."""
        if not first:
            self.barrier(LONG)
        try:
            yield
        finally:
            if first:
                self.barrier(LONG)

    def agree(self, what: str, value: str) -> None:
        """Raises UserError unless every rank has the same value."""
        found = self.gather(value)
        if len(set(found)) > 1:
            listed = "\n  ".join(f"rank {rank}: {text}" for rank, text in enumerate(found))
            raise UserError(
                f"The processes of this run do not have the same {what}:\n  {listed}\n"
                "  Start all of them with the same words, from the same version of dumbo."
            )


def asked_by_environment() -> bool:
    """Whether torchrun or accelerate launch started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _settle() -> None:
    """A thread of gloo frees an exchange's tensors after the exchange, with Python's lock. If the interpreter is being taken
    down by then, that aborts a process that has done everything right (seen with torch 2.13): sleeping passes the lock on.
    """
    time.sleep(SETTLES)


def join(timeout: float) -> World:
    """Joins the other processes that the environment names (RANK, WORLD_SIZE, MASTER_ADDR, …).

    Args:
        timeout: seconds that one exchange may take before the run counts as broken.
    """
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    atexit.unregister(_settle)  # of an earlier run in this process
    atexit.register(_settle)
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # else it starts no process group on a machine without a GPU
    # transformers' Trainer finds this group already there, with this timeout.
    state = PartialState(cpu=not cuda, backend=None if cuda else "gloo", timeout=timedelta(seconds=timeout))
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if cuda else dist.group.WORLD
    patient = {time: dist.new_group(backend="gloo", timeout=time) for time in (LONG, DISK)}
    return World(state.process_index, state.num_processes, state.local_process_index, group, patient)
