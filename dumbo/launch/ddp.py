"""`launch=ddp`: one process a GPU (or some on the CPU), each with the whole model; gradients are averaged.

Li et al. 2020, arXiv:2006.15704; the wrapper is torch's DistributedDataParallel, put on by accelerate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dumbo.launch.job import Job
from dumbo.launch.many import Many, checked


@dataclass(frozen=True, kw_only=True)
class Ddp:
    """Several processes, each with a copy of the model.

    Args:
        num_processes: on each machine; null: one a visible GPU, or one on the CPU.
        num_nodes: machines.
        rdzv_endpoint: host:port where several machines meet; the same on all of them.
        start_timeout: seconds (or 5m) until all processes must be ready.
        timeout: seconds (or 10m) that an exchange between processes may take before the run counts as broken.
    """

    num_processes: int | None = None
    num_nodes: int = 1
    rdzv_endpoint: str | None = None
    start_timeout: float | str = "5m"
    timeout: float | str = "10m"

    wrapper: ClassVar[str] = "DDP"

    def __post_init__(self) -> None:
        checked(self)

    @property
    def many(self) -> Many:
        """The processes."""
        return Many.of(self)

    @property
    def ranks(self) -> int:
        return self.many.ranks

    def launch(self, job: Job) -> dict[str, Any]:
        """Runs the job in its processes; returns rank 0's metrics."""
        return self.many.launch(job)
