"""Proof: k steps, a stop, and k more in another process are 2k steps.

The stop is the signal that a cluster sends; what is gone on from is the checkpoint that the run then saves. Compared are
losses, gradient norms and learning rates of the steps after it and, at the end, every tensor that trains and the
optimizer's state of it. On a CPU bit by bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from dumbo.verify.determinism import allowed, apart_by, determinism, losses_of
from dumbo.verify.proof import DoesNotApplyError, Proof, larger, measured
from dumbo.verify.steps import HALF, first_half, second_half, straight

if TYPE_CHECKING:
    from dumbo.verify.subject import Subject


def resumed(subject: Subject) -> Proof:
    """The last k steps of the run without a stop, and those that were made after it."""
    whole = straight(subject)
    if "deterministic" not in subject.shared:
        first_half(subject)
        determinism(subject)
    if not subject.shared["deterministic"]:
        raise DoesNotApplyError("two runs with the same seed differ, so that there is nothing to compare with")
    again = second_half(subject)
    rows = apart_by(whole["rows"][HALF:], again["rows"])
    state, worst = _states_apart(whole["state"], again["state"])
    difference = larger(rows, state)
    return measured(
        "resume",
        f"{2 * HALF} steps, and {HALF} + {HALF} with a stop by SIGUSR1 and another process: losses, gradient norms, learning "
        f"rates, and {len(whole['state'])} tensors of weights and optimizer at the end",
        difference,
        allowed(subject),
        f"After the stop the run is another one: losses {losses_of(whole['rows'][HALF:])} without it, {losses_of(again['rows'])} after "
        f"it; {worst}.\nDo not rely on resume=… with these plugins.",
    )


def _states_apart(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, str]:
    """The largest relative distance of a tensor, and in words which it is. Equal bits: 0."""
    if one.keys() != other.keys():
        return float("inf"), f"{len(one)} tensors of weights and optimizer without it, {len(other)} after it"
    differ = [name for name in one if one[name]["hash"] != other[name]["hash"]]
    largest, worst = 0.0, "none"
    for name in differ:
        a, b = torch.tensor(one[name]["sample"]), torch.tensor(other[name]["sample"])
        # equal in the sample and not in all of it: less than can be seen there
        found = larger(1e-12, float((a - b).norm() / max(float(a.norm()), float(b.norm()), 1e-30)))
        if not math.isnan(largest) and larger(largest, found) != largest:
            largest, worst = found, name
    return (
        largest,
        f"{len(differ)} of {len(one)} tensors differ at the end, most {worst}" if differ else "all tensors equal",
    )
