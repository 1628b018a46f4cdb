"""`launch=auto`, the default: every visible GPU, one process each (DDP); with one or none, this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dumbo.launch.job import Job
from dumbo.launch.many import Many, checked
from dumbo.launch.single import Single


@dataclass(frozen=True, kw_only=True)
class Auto:
    """As many processes as there are GPUs, or as torchrun started.

    Args:
        num_processes, num_nodes, rdzv_endpoint, start_timeout, timeout: see `launch=ddp`.
    """

    num_processes: int | None = None
    num_nodes: int = 1
    rdzv_endpoint: str | None = None
    start_timeout: float | str = "5m"
    timeout: float | str = "10m"

    def __post_init__(self) -> None:
        checked(self)

    @property
    def ranks(self) -> int:
        return Many.of(self).ranks

    @property
    def wrapper(self) -> str:
        return "DDP" if self.ranks > 1 else "none"

    @property
    def seconds_an_exchange(self) -> float:
        return Many.of(self).timeout

    def require_many(self) -> None:
        """Started by torchrun: the ranks are those."""

    def launch(self, job: Job) -> dict[str, Any]:
        """Runs the job, in this process or in several; returns the metrics."""
        return Many.of(self).launch(job) if self.ranks > 1 else Single().launch(job)
