"""Which batches one CUDA graph can take, and where it reads them.

Used by `graphs.py`. Kinds differ in how many documents there is place for, how many tokens bear a loss, and what attention takes
as the longest document. Long documents (`long_documents.py`) go through cuDNN where they are rows that fill the batch, and
through tiles elsewhere: where they lie is read while launching, so that a graph has it in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dumbo.trainer import long_documents

BOUNDS = "cu_seq_lens_q"


@dataclass
class Kind:
    """One shape of batch.

    Attributes:
        seen: how many there were; -1: there is no place for its graph.
        in_cudnn: its documents are rows that go through cuDNN.
        graph: None until it is captured.
        inputs, items: where the graph reads the batch, and its trained tokens.
        loss: where it writes.
        proven: it has given what the batch gives as written.
    """

    seen: int = 0
    in_cudnn: bool = False
    graph: torch.cuda.CUDAGraph | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    items: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    proven: bool = False


def rows_of(inputs: dict[str, Any]) -> list[long_documents.Part]:
    """The rows that cuDNN takes of a batch on the device; none where its documents go through tiles, as from here on they do."""
    return long_documents.keep_whole_rows(inputs[BOUNDS], inputs["input_ids"].shape[1]) if BOUNDS in inputs else []


def has_long(inputs: dict[str, Any]) -> bool:
    """Whether it is known that a batch has long documents."""
    return BOUNDS in inputs and bool(long_documents.known(inputs[BOUNDS]))


def forget_long(inputs: dict[str, Any]) -> None:
    """From here on all of a batch's documents go through tiles."""
    if BOUNDS in inputs:
        long_documents.forget(inputs[BOUNDS])


def key_of(inputs: dict[str, Any], rows: Sequence[long_documents.Part] = ()) -> tuple[Any, ...]:
    """Equal for batches that one graph can take."""
    return tuple(rows), *(
        (name, tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else (name, value)
        for name, value in sorted(inputs.items())
    )


def copies_of(inputs: dict[str, Any]) -> dict[str, Any]:
    """Copies of the tensors, of whose documents the same is known; one that stands under two names stays one."""
    made: dict[int, torch.Tensor] = {}
    found: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            value = made.setdefault(id(value), value.clone())
        found[name] = value
    if BOUNDS in inputs:
        long_documents.tell_of_copy(inputs[BOUNDS], found[BOUNDS])
    return found
