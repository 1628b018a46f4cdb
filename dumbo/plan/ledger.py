"""Counts the memory of tensors: every storage that an operation makes, until nothing refers to it any more.

A mode of torch's dispatcher, so that it sees what autograd keeps and what backward makes, on real tensors as on fake
ones. What a kernel takes for itself inside one operation is not seen (`memory.py` adds it).
https://docs.pytorch.org/docs/stable/notes/extending.html#extending-all-torch-api-with-modes
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = ("weights", "gradients", "optimizer", "activations", "loss", "backward")
"""weights and buffers; what they are summed up in; optimizer state and masters; what the layers keep for backward;
logits and loss; what backward makes on its way (recomputed layers, gradients of activations)."""


class Ledger(TorchDispatchMode):
    """What is held, by kind, and the moment when that was most.

    Attributes:
        kind: of what is made from now on.
        held: kind -> bytes, now.
        at_peak: kind -> bytes, when their sum was largest.
        largest: bytes of the largest single storage.
    """

    supports_higher_order_operators = True  # compiled graphs hold some
    _overlooking = False

    def __init__(self) -> None:
        super().__init__()
        self.kind = "weights"
        self.held = dict.fromkeys(KINDS, 0)
        self.at_peak = dict(self.held)
        self.largest = 0
        self._known: dict[int, tuple[str, int]] = {}
        self._now = self._peak = 0

    @property
    def peak(self) -> int:
        """Bytes."""
        return self._peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for found in tree_leaves(out):
            if isinstance(found, torch.Tensor):
                self._note(found)
        return out

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """torch.compile goes on under this mode: not while it compiles, but in what it makes."""
        return True

    @staticmethod
    @contextmanager
    def overlooked() -> Iterator[None]:
        """What is made inside is not counted, by any ledger: in life it is not there as a whole."""
        before, Ledger._overlooking = Ledger._overlooking, True
        try:
            yield
        finally:
            Ledger._overlooking = before

    @contextmanager
    def making(self, kind: str) -> Iterator[None]:
        """What is made inside is of this kind."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def move(self, tensor: torch.Tensor, kind: str) -> None:
        """A tensor turned out to be of another kind."""
        key = tensor.untyped_storage()._cdata
        if key in self._known:
            before, size = self._known[key]
            self._known[key] = (kind, size)
            self.held[before] -= size
            self.held[kind] += size

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size or Ledger._overlooking:
            return
        self._known[key] = (self.kind, size)
        self.held[self.kind] += size
        self._now += size
        self.largest = max(self.largest, size)
        if self._now > self._peak:
            self._peak, self.at_peak = self._now, dict(self.held)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        kind, size = self._known.pop(key)
        self.held[kind] -= size
        self._now -= size
