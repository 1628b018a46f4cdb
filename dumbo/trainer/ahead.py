"""The next step's batches, made while this step trains.

Used by `feeding.py` on a GPU, whose kernels are launched by one Python thread: what that thread does for data comes on
top of every step. One thread beside it takes the batches from the loader's iterator, in its order, and pins their
memory; one step ahead, never past the end of an epoch, whose iterator ends there.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from dumbo.trainer import long_documents


class Ahead:
    """Takes batches from an iterator one step ahead. Stopping in the middle loses nothing: order is not state."""

    def __init__(self, device: torch.device) -> None:
        self._thread = ThreadPoolExecutor(1, "batches", initializer=_on, initargs=(device,))
        self._iterator: Iterator[Any] | None = None
        self._next: Future[list[Any]] | None = None

    def take(self, iterator: Iterator[Any], amount: int) -> list[Any]:
        """The next `amount` batches of an iterator; fewer where it ends."""
        if iterator is not self._iterator:  # another epoch
            self._iterator, self._next = iterator, None
        batches = pulled(iterator, amount) if self._next is None else self._next.result()
        assert len(batches) <= amount, "a step had more micro batches than it asks for now"
        self._next = self._thread.submit(pulled, iterator, amount) if len(batches) == amount else None
        return batches

    def forget(self) -> None:
        """What was made for the next step is not wanted."""
        self._iterator = self._next = None

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def pulled(iterator: Iterator[Any], amount: int) -> list[Any]:
    """At most `amount` items."""
    return [item for _, item in zip(range(amount), iterator, strict=False)]


def moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """On the device; the copy is only ordered, which leaves the launching thread free (from pinned memory)."""
    there = {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }
    long_documents.tell(batch, there)
    return there


def _on(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)  # a thread's own; pinning would make a context on the first GPU
