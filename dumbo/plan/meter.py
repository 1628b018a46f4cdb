"""How much memory this process holds at most, and how much it may: of the GPU where there is one, else of the CPU.

On a GPU torch's allocator is given a limit, and says itself when it is reached. On a CPU the system counts (resident
memory, over what it was before the model was there), and the limit is held against it afterwards.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

MARGIN = 0.05
"""Of the free memory, left alone: fragments, and what other programs take meanwhile."""
OF_RANKS = 1 << 30
"""Bytes that exchange between ranks takes outside of torch's allocator (NCCL's buffers)."""


class Full(Exception):
    """The memory ran out, or the limit was passed."""


class Meter(Protocol):
    """Peak memory of what happens between `begin` and `end`."""

    limit: int | None

    def begin(self) -> None:
        """From here on."""

    def end(self) -> int:
        """Bytes at the peak. Raises Full when that was more than the limit."""


@dataclass
class GpuMeter:
    """Of the current GPU, by torch's allocator.

    Attributes:
        limit: bytes.
    """

    limit: int | None = None

    @classmethod
    def with_limit(cls, asked: int | None, ranks: int) -> GpuMeter:
        """The free memory without the margin, or less."""
        free, total = torch.cuda.mem_get_info()
        most = int((1 - MARGIN) * free) - (OF_RANKS if ranks > 1 else 0)
        limit = min(most, asked) if asked is not None else most
        torch.cuda.set_per_process_memory_fraction(max(0.0, limit / total))
        return cls(limit)

    def begin(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def end(self) -> int:
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())


@dataclass
class CpuMeter:
    """Resident memory of this process, as Linux counts it.

    Attributes:
        limit: bytes; None: none.
        before: bytes that were there already, which do not count.
    """

    limit: int | None = None
    before: int = 0

    def begin(self) -> None:
        with suppress(OSError):  # a container may forbid it: then the peak is that of the whole life
            Path("/proc/self/clear_refs").write_text("5")

    def end(self) -> int:
        peak = max(0, resident("VmHWM") - self.before)
        if self.limit is not None and peak > self.limit:
            raise Full(f"{peak:,} bytes are more than the limit of {self.limit:,}")
        return peak


def resident(name: str = "VmRSS") -> int:
    """Bytes of this process: VmRSS now, VmHWM at the peak. See proc(5)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def meter(limit: int | None, ranks: int) -> Meter:
    """The one of this machine.

    Args:
        limit: bytes; None: what is free, on a CPU without a limit.
        ranks: of the run, one a GPU.
    """
    return GpuMeter.with_limit(limit, ranks) if torch.cuda.is_available() else CpuMeter(limit, resident())
