"""What a training consists of at one moment: each tensor that trains, its float32 master and the optimizer's state of it.

A tensor is told by a hash of its bits and by some of its numbers: equal bits are seen from the hash, and how far two
trainings are apart, where bits are not equal, from the numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from dumbo.trainer.masters import stepped_on

Digest = dict[str, dict[str, Any]]
"""Name -> hash, numel, sample. Names: of the parameter, or `PARAMETER (KEY)` with the optimizer's key."""

SAMPLE = 1024
"""So many numbers of a tensor are kept."""
WEIGHTS = "weights"


class Moments(TrainerCallback):
    """Takes digests on the way, each of which looks at every bit.

    Args:
        trainer: whose training it is.
        first: one before the first step of this process.
        half: one after this step, counted from 1 as in the run's rows; None: none.
    """

    def __init__(self, trainer: Any, *, first: bool, half: int | None) -> None:
        self.trainer, self.wants_first, self.at = trainer, first, half
        self.first: Digest | None = None
        self.half: Digest | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """By now everything of a checkpoint is loaded."""
        if self.wants_first and self.first is None:
            self.first = digest(self.trainer)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at:
            self.half = digest(self.trainer)


def digest(trainer: Any) -> Digest:
    """Of a trainer as it stands."""
    found, names = {}, {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            names[id(parameter)] = name
            found[name] = _digest(parameter.detach())
    optimizer = trainer._plain_optimizer
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            weight = stepped_on(parameter)
            if weight is not parameter:
                names[id(parameter)] = names[id(weight)]
                found[f"{names[id(weight)]} (master)"] = _digest(parameter.detach())
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                found[f"{names[id(parameter)]} ({key})"] = _digest(value.detach())
    return found


def _digest(tensor: torch.Tensor) -> dict[str, Any]:
    flat = tensor.flatten()
    sample = flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE].float().cpu().tolist()
    data = flat.cpu().contiguous().view(torch.uint8).numpy() if flat.numel() else np.zeros(0, np.uint8)
    return {
        "hash": hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest(),
        "numel": tensor.numel(),
        "sample": sample,
    }


def unequal(one: Digest, other: Digest) -> list[str]:
    """Names whose bits differ, or that only one of them has."""
    return [name for name in {**one, **other} if one.get(name, {}).get("hash") != other.get(name, {}).get("hash")]


def kind_of(name: str) -> str:
    """weights, or the optimizer's key."""
    return name.rpartition(" (")[2].rstrip(")") if name.endswith(")") else WEIGHTS


def distances(one: Digest, other: Digest) -> dict[str, float]:
    """Kind -> the distance of all its tensors as one vector, as far as their samples tell; inf where names are not the same.

    Kinds of which each tensor is one number (the optimizer's count of steps) are left out: they are equal or not.
    """
    squares: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name in {**one, **other}:
        kind = kind_of(name)
        counts[kind] = max(counts.get(kind, 0), *(side[name]["numel"] for side in (one, other) if name in side))
        apart = float("inf")
        if name in one and name in other:
            a, b = (np.asarray(side[name]["sample"], np.float64) for side in (one, other))
            apart = float(np.square(a - b).sum()) * one[name]["numel"] / max(1, len(a)) if len(a) == len(b) else apart
        squares[kind] = squares.get(kind, 0.0) + apart
    return {kind: squared**0.5 for kind, squared in squares.items() if counts[kind] > 1}


def farthest(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, str]:
    """The largest relative distance of a tensor, and in words which it is. Equal bits: 0."""
    if one.keys() != other.keys():
        return float("inf"), f"{len(one)} tensors of weights and optimizer in one, {len(other)} in the other"
    largest, worst = 0.0, "none"
    differ = [name for name in one if one[name]["hash"] != other[name]["hash"]]
    for name in differ:
        a, b = (np.asarray(side[name]["sample"], np.float64) for side in (one, other))
        size = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)), 1e-30)
        # equal in the sample and not in all of it: less than can be seen there
        found = max(1e-12, float(np.linalg.norm(a - b)) / size)
        if np.isnan(found) or found > largest:
            largest, worst = found, name
        if np.isnan(found):
            break
    said = f"{len(differ)} of {len(one)} tensors differ, most {worst}" if differ else "all tensors equal"
    return largest, said
