"""How many GPUs this process may use, known without importing torch: the config is checked before that."""

from __future__ import annotations

import os
from pathlib import Path

NAMES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def visible_gpus() -> int:
    """GPUs that torch is going to see: those named in CUDA_VISIBLE_DEVICES, else the machine's."""
    for name in NAMES:
        if (named := os.environ.get(name)) is not None:
            return _named(named)
    return len([path for path in Path("/dev").glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()])


def _named(text: str) -> int:
    """Entries before the first invalid one, as CUDA reads them."""
    count = 0
    for entry in text.split(","):
        entry = entry.strip()
        if not entry or entry.startswith("-"):
            break
        count += 1
    return count
