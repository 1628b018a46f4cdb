"""`launch=fsdp`: one process a GPU (or some on the CPU); weights, gradients and optimizer state are sharded (FSDP2).

Zhao et al. 2023, arXiv:2304.11277; torch's fully_shard, put on by accelerate.
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dumbo.launch.job import Job
from dumbo.launch.many import Many, checked


@dataclass(frozen=True, kw_only=True)
class Fsdp:
    """Several processes, each with a shard of every layer; a layer is gathered while it computes.

    Args:
        num_processes, num_nodes, rdzv_endpoint, start_timeout, timeout: see `launch=ddp`.
        reshard_after_forward: let go of a gathered layer after its forward pass, and gather it once more for the
            backward one; false: more memory, less traffic.
    """

    num_processes: int | None = None
    num_nodes: int = 1
    rdzv_endpoint: str | None = None
    start_timeout: float | str = "5m"
    timeout: float | str = "10m"
    reshard_after_forward: bool = True

    wrapper: ClassVar[str] = "FSDP2"

    def __post_init__(self) -> None:
        checked(self)

    @property
    def many(self) -> Many:
        """The processes."""
        return Many.of(self)

    @property
    def ranks(self) -> int:
        return self.many.ranks

    @property
    def fsdp(self) -> dict[str, Any]:
        """Options of the wrapper, by the names of transformers' `fsdp_config`."""
        return {"reshard_after_forward": self.reshard_after_forward}

    def launch(self, job: Job) -> dict[str, Any]:
        """Runs the job in its processes; returns rank 0's metrics."""
        return self.many.launch(job)
