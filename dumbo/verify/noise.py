"""How far two trainings may be apart where a machine does not compute the same bits twice: measured on that machine.

On a CPU a training is the same bit by bit, and nothing here is asked. A GPU takes some sums in the order in which its
threads arrive. Then two distances are measured beside the one that counts:

    noise     between two runs of the same steps: what this machine does by itself
    reach     between what can be told apart: two seeds (determinism), the moments k steps apart (resume)

A proof allows a multiple of the noise, and is one only while it allows no more than a tenth of the reach: what it looks for
(a batch that is another one, weights or moments that were not loaded) is as large as the reach. Where the noise is larger
the proof says that it cannot tell.

Gradients are noisy by a part; Adam's first updates have the size of the learning rate whatever the gradient's is, so that
weights move by the noise of their smallest gradients. Its moments are sums of gradients: they tell more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dumbo.verify.digests import distances, unequal
from dumbo.verify.proof import Tolerance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumbo.verify.steps import Row

MULTIPLE = 3
"""Times the noise, as one repetition shows it: norms of many numbers, which hardly vary from one repetition to the next."""
TENTH = 0.1
"""Of the reach: a proof that allowed more could not tell what it looks for."""
ROWS = {"loss": "losses", "grad_norm": "gradient norms"}


def bitwise_here() -> bool:
    """Whether the same steps give the same bits: sums on a CPU are taken in one order."""
    return not torch.cuda.is_available()


@dataclass(frozen=True)
class Seen:
    """One quantity of two trainings.

    Attributes:
        what: losses, gradient norms, weights, or a key of the optimizer's state.
        difference: measured.
        allowed: how much may be.
        tells: whether what is looked for would be seen.
    """

    what: str
    difference: float
    allowed: float
    tells: bool = True

    @property
    def passed(self) -> bool:
        return self.difference <= self.allowed  # False for nan

    @property
    def excess(self) -> float:
        """Of the difference over what is allowed; inf where it is no number."""
        share = self.difference / max(self.allowed, 1e-30)
        return share if np.isfinite(share) else float("inf")


def worst(seen: Sequence[Seen]) -> Seen:
    """What decides: what is furthest over, or nearest to, what is allowed."""
    return max(seen, key=lambda one: one.excess)


def same(one: dict[str, Any], other: dict[str, Any], moments: Sequence[str]) -> bool:
    """Whether two trainings are the same bit by bit.

    Args:
        moments: which of their digests are compared.
    """
    return bool(one["rows"] == other["rows"]) and not any(unequal(one[moment], other[moment]) for moment in moments)


def row_distances(one: Sequence[Row], other: Sequence[Row]) -> dict[str, float]:
    """Losses and gradient norms: root mean square over the steps of their relative differences; nan stays."""
    found = {}
    for key, name in ROWS.items():
        a, b = (np.array([row[key] for row in rows], dtype=np.float64) for rows in (one, other))  # None: nan
        found[name] = float(np.sqrt(np.mean(np.square((a - b) / np.maximum(np.abs(a), 1e-12)))))
    return found


def against_another_seed(
    one: dict[str, Any], other: dict[str, Any], strange: dict[str, Any], half: int, dtype: torch.dtype
) -> list[Seen]:
    """Two runs with one seed, as a share of the distance to a run with another seed.

    Args:
        one, other: rows, and a digest `half`.
        strange: the run with another seed.
        half: so many steps.
        dtype: what products are computed in: a quantity that another seed moves by less than ten roundings tells nothing.
    """
    near, far = (
        row_distances(one["rows"][:half], other["rows"][:half]),
        row_distances(one["rows"][:half], strange["rows"][:half]),
    )
    seen = []
    for what, reach in far.items():
        tells = reach * TENTH >= torch.finfo(dtype).eps
        seen.append(Seen(what, near[what] / max(reach, 1e-30), TENTH, tells))
    apart, reaches = distances(one["half"], other["half"]), distances(one["half"], strange["half"])
    for what, reach in reaches.items():
        if what not in PARAMETERS:  # their updates have the learning rate's size
            seen.append(Seen(what, apart[what] / max(reach, 1e-30), TENTH, reach > 0))
    return seen


PARAMETERS = ("weights", "master")
"""What is stepped on."""


def against_repetition(
    whole: dict[str, Any],
    resumed: dict[str, Any],
    again: dict[str, Any],
    half: int,
    rounding: Tolerance,
    dtype: torch.dtype,
) -> list[Seen]:
    """The steps after a stop, beside those of the run without one and of its repetition.

    Args:
        whole: the run without a stop: rows, digests `half` and `end`.
        resumed: rows after the stop, digest `end`.
        again: the repetition.
        half: steps before the stop.
        rounding: least that is allowed of losses and gradient norms, which are few numbers.
        dtype: what products are computed in: no update is known better than its rounding.
    """
    floor = torch.finfo(dtype).eps
    near = row_distances(whole["rows"][half:], resumed["rows"])
    noise = max(row_distances(whole["rows"], again["rows"]).values())
    seen = [Seen(what, apart, max(MULTIPLE * noise, rounding.value)) for what, apart in near.items()]
    moved, apart = distances(whole["half"], whole["end"]), distances(whole["end"], resumed["end"])
    repeated = distances(whole["end"], again["end"])
    for what, reach in moved.items():
        size = max(reach, 1e-30)
        allowed = max(MULTIPLE * repeated[what] / size, floor)
        seen.append(Seen(what, apart[what] / size, allowed, reach > 0 and allowed <= TENTH))
    return seen
