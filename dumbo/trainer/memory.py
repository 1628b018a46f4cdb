"""What counts as memory running out, giving memory back, and the random state of a moment to return to.

torch's errors: https://docs.pytorch.org/docs/stable/generated/torch.cuda.OutOfMemoryError.html; on the CPU a RuntimeError
of its allocator.
"""

from __future__ import annotations

import gc
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

CPU_SAYS = "DefaultCPUAllocator: can't allocate memory"
OTHERS_SAY = ("CUDA error: out of memory", "Error [CUDA]: out of memory", "_STATUS_ALLOC_FAILED")
"""What does not go through torch's allocator: the driver (making a CUDA graph, among others), Triton, cuBLAS and cuDNN."""


def ran_out(error: BaseException) -> bool:
    """Whether an error, or what it came of (a graph's capture, a compiler), says that the GPU's or the CPU's memory is full."""
    return _memory_error(error) is not None


def _memory_error(error: BaseException | None) -> BaseException | None:
    """The error itself, or one of those that it came of or was raised in the handling of."""
    left, seen = [error], set()
    while left:
        if (one := left.pop()) is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.OutOfMemoryError | MemoryError):
            return one
        if isinstance(one, RuntimeError) and any(words in str(one) for words in (CPU_SAYS, *OTHERS_SAY)):
            return one
        left += [one.__context__, one.__cause__]
    return None


def first_line(error: BaseException) -> str:
    """What such an error says, in short."""
    error = _memory_error(error) or error
    lines = str(error).strip().splitlines()
    text = next((line[line.index(CPU_SAYS) :] for line in lines if CPU_SAYS in line), lines[0] if lines else "")
    return text.split(". GPU ", 1)[0].split(". Error code ", 1)[0].rstrip(".") or type(error).__name__


def give_back() -> None:
    """What nothing refers to any more goes back to the system. Called outside of the `except` block: an error holds frames."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class RandomState:
    """Of Python, numpy, torch and this process's device."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    device: torch.Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        own = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), own)

    def restore(self, device: torch.device) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            torch.cuda.set_rng_state(self.device, device)
