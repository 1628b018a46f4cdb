"""Where a task of a job runs, and how SLURM is asked to start its job again."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

AGAIN_HERE = 144
"""The exit code by which submitit's local executor knows that a job is to be started again."""


@dataclass(frozen=True)
class Place:
    """Where a task runs.

    Attributes:
        job: its number, as SLURM counts (12_3 in an array).
        node: this one among its nodes.
        nodes: how many.
        in_slurm: whether SLURM runs it, and not submitit's local executor.
    """

    job: str
    node: int
    nodes: int
    in_slurm: bool

    @classmethod
    def here(cls) -> Place:
        import submitit

        env = submitit.JobEnvironment()
        return cls(env.job_id, env.global_rank, env.num_nodes, env.cluster == "slurm")

    def still_wanted(self) -> bool:
        """Whether SIGTERM came before a preemption: SLURM calls a job that was cancelled so at once."""
        if not self.in_slurm:
            return False
        found = subprocess.run(
            ["squeue", "--noheader", "--jobs", self.job, "--format", "%T"], capture_output=True, text=True, check=False
        )
        return found.stdout.strip() == "RUNNING"

    def again(self) -> str | None:
        """Puts the job back into the queue; what SLURM said, when it would not.

        Once SLURM has agreed it ends all that runs in the job, which may be scontrol before it has: by a signal, then.
        """
        if not self.in_slurm:
            return None
        asked = subprocess.run(["scontrol", "requeue", self.job], capture_output=True, text=True, check=False)
        if asked.returncode <= 0:
            return None
        return (asked.stderr or asked.stdout).strip() or "no reason given"

    @property
    def code_for_again(self) -> int:
        return 0 if self.in_slurm else AGAIN_HERE
