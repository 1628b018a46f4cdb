"""What a proof says: what was compared, the difference that was measured, how much is allowed and why so much.

A proof is a function (Subject) -> Proof or a list of them; `verify.py` has the list, `table.py` draws what they say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dumbo.errors import UserError

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
        tolerance: the largest difference that passes; None where the comparison is exact, or is not judged.
        source: where the tolerance comes from (dtype, length), or "exact".
        passed: None: it does not apply here ("left out"), or its difference is not judged ("reported"); `detail` says why.
        detail: when it failed: what is wrong and what to do.
        error: the kind of exception that ended it before it had proven anything; `passed` is False then.
    """

    name: str
    compared: str
    difference: float | None
    tolerance: float | None
    source: str
    passed: bool | None
    detail: str = ""
    error: str | None = None

    @property
    def state(self) -> str:
        """pass, fail, reported, left out or error."""
        if self.error is not None:
            return "error"
        if self.passed is None and self.difference is not None:
            return "reported"
        return {True: "pass", False: "fail", None: "left out"}[self.passed]


ProofFunction = Callable[["Subject"], "Proof | Sequence[Proof]"]


class DoesNotApplyError(Exception):
    """Raised by a proof that means nothing for this experiment; its text says why, and the proof is left out."""


class RefusedError(UserError):
    """What `train` would refuse when it loads or patches the model: there is nothing to be proven then."""


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


def tolerance_for(dtype: torch.dtype, layers: int, *, scale: float = 1.0, factor: float = 4.0) -> Tolerance:
    """For two ways of computing the same numbers whose sums are taken in another order.

    Each layer adds to the residual stream twice, rounded each time, and the head rounds once more: 2 x layers + 1
    roundings. Those without a common direction grow with the square root of their number; sums inside a layer are taken
    in float32 and add less. `factor` leaves room for what is unlike random.

    Args:
        dtype: that is rounded to (bfloat16 under autocast).
        layers: of the model; 0: both ways have the same layers, and only the head and the loss differ.
        scale: of the numbers that are compared; 1: their difference is relative.
    """
    eps = torch.finfo(dtype).eps
    roundings = 2 * layers + 1
    name = str(dtype).removeprefix("torch.")
    source = f"{factor:g} x eps({name})"
    if layers:
        source += f" x sqrt({roundings} roundings)"
    if scale != 1:
        source += f" x {scale:.3g}"
    return Tolerance(factor * eps * roundings**0.5 * scale, source)


def rms_tolerance(dtype: torch.dtype, layers: int, *, scale: float = 1.0, factor: float = 4.0) -> Tolerance:
    """`tolerance_for` the root mean square of many numbers' differences, where no single one stands out.

    Rounding to the nearest errs by eps / sqrt(12) in the mean, the difference of two roundings by eps / sqrt(6), which is
    0.41 eps: in half precision, where nothing but roundings counts, a factor of 1 leaves room enough.

    Args:
        factor: in float32, where the sums inside a layer round as coarsely as their results.
    """
    return tolerance_for(dtype, layers, scale=scale, factor=factor if dtype == torch.float32 else 1.0)


def loss_tolerance(dtype: torch.dtype, layers: int, tokens: int) -> Tolerance:
    """For a mean loss over tokens, relative: their errors have no common direction; the sum is taken in float32."""
    one, summed = tolerance_for(dtype, layers), tolerance_for(torch.float32, layers)
    return Tolerance(one.value / tokens**0.5 + summed.value, f"{one.source} / sqrt({tokens} tokens), summed in float32")


def larger(one: float, other: float) -> float:
    """The larger of two differences; what is not a number is larger than any."""
    return other if math.isnan(other) or other > one else one


def reported(name: str, compared: str, difference: float, why: str) -> Proof:
    """A difference that is meant: told and not judged. One that is not finite fails all the same.

    Args:
        why: what makes the difference.
    """
    fine = math.isfinite(difference)
    return Proof(
        name=name,
        compared=compared,
        difference=difference,
        tolerance=None,
        source="",
        passed=None if fine else False,
        detail=f"Not judged: {why}" if fine else f"It is not a finite number ({why}).",
    )
