"""What a proof says: what was compared, the difference that was measured, how much is allowed and why so much.

A proof is a function (Subject) -> Proof or a list of them; `verify.py` has the list, `table.py` draws what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dumbo.verify.subject import Subject

EXACT = "exact"
"""The source of a proof that measures nothing: it holds or it does not."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One proof.

    Attributes:
        name: as the table shows it ("packed = unpacked").
        compared: what was compared, in words, with counts.
        difference: measured; None where the comparison is exact.
        tolerance: the largest difference that passes; None where the comparison is exact.
        source: where the tolerance comes from (dtype, length), or "exact".
        passed: None: it does not apply here, and `detail` says why ("left out").
        detail: when it failed: what is wrong and what to do.
    """

    name: str
    compared: str
    difference: float | None
    tolerance: float | None
    source: str
    passed: bool | None
    detail: str = ""


ProofFunction = Callable[["Subject"], "Proof | Sequence[Proof]"]


class DoesNotApplyError(Exception):
    """Raised by a proof that means nothing for this experiment; its text says why, and the proof is left out."""


def exact(name: str, compared: str, fault: str | None) -> Proof:
    """A proof that holds or does not: `fault` says what is wrong and what to do, None that all is well."""
    return Proof(
        name=name,
        compared=compared,
        difference=None,
        tolerance=None,
        source=EXACT,
        passed=fault is None,
        detail=fault or "",
    )


def measured(name: str, compared: str, difference: float, allowed: Tolerance, fault: str) -> Proof:
    """A proof with a difference; one that is not a number fails.

    Args:
        fault: what is wrong and what to do, said when the difference is over the tolerance.
    """
    passed = difference <= allowed.value  # False for nan
    return Proof(
        name=name,
        compared=compared,
        difference=difference,
        tolerance=allowed.value,
        source=allowed.source,
        passed=passed,
        detail="" if passed else fault,
    )


@dataclass(frozen=True)
class Tolerance:
    """How much two ways of computing one number may differ, and where that comes from."""

    value: float
    source: str


def tolerance_for(dtype: torch.dtype, terms: int, *, factor: float = 16.0) -> Tolerance:
    """For relative differences of sums of `terms` numbers that are added up in another order.

    Rounding errors of a sum that have no common direction grow with the square root of its terms: eps x sqrt(terms), and
    `factor` times that for the layers it goes through.

    Args:
        dtype: that the products are computed in (bf16 under autocast).
        terms: of the longest sum: tokens x layers, say.
    """
    eps = torch.finfo(dtype).eps
    name = str(dtype).removeprefix("torch.")
    root = max(1.0, terms) ** 0.5
    return Tolerance(factor * eps * root, f"{factor:g} x eps({name}) x sqrt({terms:,})")
