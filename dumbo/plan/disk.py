"""What a run writes: how large a checkpoint is, how many lie there at once, and whether the disk has room."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Disk:
    """Bytes.

    Attributes:
        model: of the weights in model/ (adapters alone where they are trained), with the tokenizer.
        checkpoint: of one checkpoint: the same and the optimizer.
        kept: checkpoints at the end.
        needed: at most, while the run goes on.
        free: of the file system; None: not known.
    """

    model: int
    checkpoint: int
    kept: int
    needed: int
    free: int | None

    @property
    def fits(self) -> bool:
        return self.free is None or self.needed <= self.free


def disk(model: Any, tokenizer: Any, optimizer: int, trainer: Any, steps: int, evaluates: bool, folder: Path) -> Disk:
    """What `trainer` saves of `model`.

    Args:
        model: patched, on any device.
        optimizer: bytes of its whole state.
        steps: of the run.
        evaluates: whether there is a best checkpoint besides the last ones.
        folder: the run's, or one above it.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    saved = trained if hasattr(model, "peft_config") else list(model.parameters())
    words = len(tokenizer.backend_tokenizer.to_str().encode()) if hasattr(tokenizer, "backend_tokenizer") else 0
    whole = sum(p.numel() * p.element_size() for p in saved) + words
    made = (steps - 1) // trainer.save_every + 1 if trainer.save_every else 1  # the last step is always saved
    best = 1 if evaluates and made > trainer.save_total_limit else 0
    kept = min(made, trainer.save_total_limit) + best
    writing = 1 if made > kept else 0  # a new one is whole before an old one goes
    checkpoint = whole + optimizer
    return Disk(whole, checkpoint, kept, (kept + writing) * checkpoint + whole, free_in(folder))


def free_in(folder: Path) -> int | None:
    """Bytes free where a folder is, or is going to be."""
    place = folder.expanduser().absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
