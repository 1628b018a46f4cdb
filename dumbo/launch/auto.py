"""`launch=auto`, the default: every visible GPU, one process each (DDP); with one or none, this process.

Where the global batch does not divide over all of them, as many as it divides over; a line of the panel says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dumbo.launch.gpus import visible_gpus
from dumbo.launch.job import Job
from dumbo.launch.many import Many, checked
from dumbo.launch.single import Single
from dumbo.launch.world import asked_by_environment


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
    def many(self) -> Many:
        """The processes."""
        return Many.of(self)

    @property
    def ranks(self) -> int:
        return self.many.ranks

    @property
    def wrapper(self) -> str:
        return "DDP" if self.ranks > 1 else "none"

    def fitting(self, divides: Callable[[int], bool]) -> Auto:
        """With as many processes as the batch divides over, when nothing else says how many.

        Args:
            divides: whether the global batch does, over so many ranks.
        """
        gpus = visible_gpus()
        if self.num_processes is not None or self.num_nodes > 1 or gpus < 2 or asked_by_environment():
            return self
        return replace(self, num_processes=next((ranks for ranks in range(gpus, 0, -1) if divides(ranks)), None))

    def launch(self, job: Job) -> dict[str, Any]:
        """Runs the job, in this process or in several; returns the metrics."""
        if self.num_processes is not None and self.num_processes < visible_gpus():
            used = f"{self.num_processes} of {visible_gpus()} are used (the global batch is divided over them)"
            job.run.console.row("gpus", used)
        return self.many.launch(job) if self.ranks > 1 else Single().launch(job)
