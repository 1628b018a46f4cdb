"""One seed for everything random that is not the order of the data (`sampler.py` has that)."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_all(trainer: object) -> None:
    """Sets Python's, numpy's and torch's random states from `trainer.seed`; before new weights (adapters) are made."""
    seed = int(getattr(trainer, "seed", 0))
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
