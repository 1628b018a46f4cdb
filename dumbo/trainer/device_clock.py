"""The device's own clock: what lies between two marks on it took so long, whoever looked when.

Work on a GPU is launched ahead of its being done, so that a clock in Python tells when something was launched, or when
somebody happened to wait for it. Marks are CUDA's timed events on the stream that trains (torch.cuda.Event). Devices
without such have the clock on the wall, which is right where launching is doing.
"""

from __future__ import annotations

import torch


def mark(device: torch.device) -> torch.cuda.Event | None:
    """Happens when all that was launched until now is done; None: the device has no marks."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(starts: torch.cuda.Event | None, ends: torch.cuda.Event | None) -> float | None:
    """Seconds from mark to mark, the later one waited for; None where one of them is none."""
    if ends is not None:
        ends.synchronize()
    return None if starts is None or ends is None else starts.elapsed_time(ends) / 1000


def drain(device: torch.device) -> None:
    """Waits until all that was launched is done: what is timed from here is not charged for it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
