"""`launch=single`: the job runs in this process, on the CPU or one GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Single:
    """One process. With several GPUs visible, the first is used (CUDA_VISIBLE_DEVICES chooses another)."""

    @property
    def ranks(self) -> int:
        return 1

    def launch(self, job: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Runs the job and returns its metrics."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None or "," in visible:
            # transformers' Trainer would spread one process over all visible GPUs (DataParallel).
            os.environ["CUDA_VISIBLE_DEVICES"] = (visible or "0").split(",")[0]
        return job()
