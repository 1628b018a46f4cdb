"""`launch=single`: the job runs in this process, on the CPU or one GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from dumbo.launch.again import with_less_memory
from dumbo.launch.job import Job
from dumbo.trainer.signals import interruptible


@dataclass(frozen=True, kw_only=True)
class Single:
    """One process. With several GPUs visible, the first is used (CUDA_VISIBLE_DEVICES chooses another)."""

    @property
    def ranks(self) -> int:
        return 1

    def launch(self, job: Job) -> dict[str, Any]:
        """Runs the job and returns its metrics.

        Raises:
            Stopped: by a signal, before or after the training loop (which saves first).
        """
        one_process()
        with interruptible():
            return with_less_memory(job.run, job.here)


def one_process() -> None:
    """Makes this process one that computes on the CPU or one GPU; before torch is loaded."""
    # Threads that wait for each other by spinning make a step many times slower as soon as anything else runs on
    # the machine. Read when torch is loaded, which is after this.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or "," in visible:
        # transformers' Trainer would spread one process over all visible GPUs (DataParallel).
        os.environ["CUDA_VISIBLE_DEVICES"] = (visible or "0").split(",")[0]
