"""What `launch=ddp` and `launch=fsdp` have in common: how many processes, and running a job in them.

    prepare the data, here, once -> freeze the config -> start the ranks (`ranks.py`) -> rank 0's result

Started by torchrun or accelerate launch, this process already is a rank: the job runs in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dumbo.errors import MemoryFull, RunFailed, UserError
from dumbo.launch import slurm
from dumbo.launch.addresses import Meeting, meeting_at
from dumbo.launch.again import with_less_memory
from dumbo.launch.gpus import visible_gpus
from dumbo.launch.job import Job
from dumbo.launch.world import asked_by_environment
from dumbo.outputs.halvings import by_hand
from dumbo.trainer.duration import seconds_of
from dumbo.trainer.signals import interruptible

if TYPE_CHECKING:
    from dumbo.outputs.run_dir import RunDir

ATTACHMENT = ".attach.json"
"""In the run's folder while its ranks start: what they need to know of it."""


class Options(Protocol):
    """The fields that both plugins have."""

    @property
    def num_processes(self) -> int | None: ...
    @property
    def num_nodes(self) -> int: ...
    @property
    def rdzv_endpoint(self) -> str | None: ...
    @property
    def start_timeout(self) -> float | str: ...
    @property
    def timeout(self) -> float | str: ...


def checked(options: Options) -> None:
    """Raises UserError for values that cannot be."""
    for name, value in (("num_processes", options.num_processes), ("num_nodes", options.num_nodes)):
        if value is not None and value < 1:
            raise UserError(f"launch.{name} must be at least 1, got {value}.")
    slurm.refuse_other_shape(options.num_nodes)
    met = options.rdzv_endpoint or asked_by_environment() or slurm.several_nodes()
    if options.num_nodes > 1 and not met:
        raise UserError(
            f"launch.num_nodes={options.num_nodes}: the machines need a place to meet.\n"
            "  Write the same launch.rdzv_endpoint=HOST:PORT on each, HOST being one of them."
        )
    if options.rdzv_endpoint is not None and not options.rdzv_endpoint.rpartition(":")[2].isdigit():
        raise UserError(f"launch.rdzv_endpoint must be HOST:PORT, got '{options.rdzv_endpoint}'.")
    _seconds("start_timeout", options.start_timeout)
    _seconds("timeout", options.timeout)


def _seconds(name: str, text: float | str) -> float:
    seconds = seconds_of(text, f"launch.{name}")
    if seconds is None or seconds <= 0:
        raise UserError(f"launch.{name} must be above 0, got {text}.")
    return seconds


@dataclass(frozen=True)
class Many:
    """The processes of a job.

    Attributes:
        here: on this machine.
        nodes: machines.
        endpoint: where they meet; "" with one, or where SLURM says it.
        start_timeout, timeout: seconds.
    """

    here: int
    nodes: int
    endpoint: str
    start_timeout: float
    timeout: float

    @classmethod
    def of(cls, options: Options) -> Many:
        return cls(
            options.num_processes or max(1, visible_gpus()),
            options.num_nodes,
            options.rdzv_endpoint or "",
            _seconds("start_timeout", options.start_timeout),
            _seconds("timeout", options.timeout),
        )

    @property
    def ranks(self) -> int:
        """Of all machines together; what torchrun says where it started this process."""
        return int(os.environ["WORLD_SIZE"]) if asked_by_environment() else self.here * self.nodes

    def launch(self, job: Job) -> dict[str, Any]:
        """Runs the job and returns rank 0's metrics.

        Raises:
            UserError: more processes than GPUs.
            Stopped, ProofFailed, RunFailed: as a rank raised it.
        """
        if job.run.world.size > 1:
            self._say(job.run, "started by another launcher")
            with interruptible(), told_by_hand(job.run):
                return job.here()
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is loaded
        with interruptible():
            job.prepare()
            import torch

        gpus = torch.cuda.device_count()
        if gpus and self.here > gpus:
            raise UserError(
                f"launch.num_processes={self.here}, but {gpus} GPU{'s are' * (gpus > 1) or ' is'} visible here."
            )
        if not gpus and visible_gpus() > 1 and self.here == visible_gpus():
            raise UserError(
                f"There are {visible_gpus()} GPUs here, but torch {torch.__version__} sees none: dumbo doctor says why.\n"
                "  For ranks on the CPU: CUDA_VISIBLE_DEVICES= and launch.num_processes=2"
            )
        run = job.run
        self._say(run, f"{self.nodes} machines" if self.nodes > 1 else "")
        if self.nodes > 1:  # the other machines' ranks would have to be started again too
            with told_by_hand(run):
                return self._in_ranks(job, gpus)
        return with_less_memory(run, lambda: self._in_ranks(job, gpus))

    def _say(self, run: RunDir, how: str) -> None:
        import torch

        where = "GPUs" if torch.cuda.is_available() else "the CPU"
        run.console.row("ranks", f"{self.ranks} on {where}{', ' * bool(how)}{how}")

    def _meeting(self) -> Meeting | None:
        if self.nodes == 1:
            return None
        return meeting_at(self.endpoint) if self.endpoint else slurm.meeting()

    def _in_ranks(self, job: Job, gpus: int) -> dict[str, Any]:
        """Once, from the start or from a checkpoint, to the end of all ranks."""
        from dumbo.launch.processes import node_folder
        from dumbo.launch.ranks import GRACE, GRACE_STOPPED, Ranks
        from dumbo.tracker.none import NoTracker

        run = job.run
        tracked = any(not isinstance(tracker, NoTracker) for tracker in run.to_track[0])
        run.write(ATTACHMENT, json.dumps(run.attachment(), default=str))
        try:
            with node_folder() as folder:
                ranks = Ranks(folder, self.here, self.nodes, self._meeting(), self.start_timeout, gpus > 0)
                ranks.grace = GRACE_STOPPED if tracked else GRACE
                ending = ranks.run(job.freeze())
            if ranks.kept:
                which = ", ".join(map(str, sorted(ranks.kept)))
                run.console.row(
                    "ranks",
                    f"done, but not gone a minute later, and ended: {which} (a tracker's or a plugin's thread?)",
                )
        finally:
            if run.writes:
                (run.path / ATTACHMENT).unlink(missing_ok=True)
            run.reload()
        return run.take_result(ending.result or {"metrics": run.facts.get("metrics", {})})


@contextmanager
def told_by_hand(run: RunDir) -> Iterator[None]:
    """Where nothing can start all ranks again, what to type is said.

    Raises:
        RunFailed: the memory was full in the block.
    """
    try:
        yield
    except MemoryFull as full:
        raise RunFailed(by_hand(run, full)) from full
