"""Proof: two runs with the same seed give the same numbers, each in a process of its own.

Losses, gradient norms and learning rates of the first steps, of the very trainer. On a CPU bit by bit; on a GPU some sums
are taken in the order in which its threads arrive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dumbo.verify.passes import layers_of
from dumbo.verify.proof import Proof, Tolerance, larger, measured, tolerance_for
from dumbo.verify.steps import HALF, Row, first_half, straight

if TYPE_CHECKING:
    from dumbo.verify.subject import Subject


def determinism(subject: Subject) -> Proof:
    """The first k steps of the run here and of the run in another process."""
    here = straight(subject)["rows"][:HALF]
    there = first_half(subject)
    difference = apart_by(here, there)
    subject.shared["deterministic"] = difference <= allowed(subject).value
    return measured(
        "determinism",
        f"two runs with seed {getattr(subject.plugins.trainer, 'seed', 0)} in two processes: losses, gradient norms, learning "
        f"rates and tokens of {HALF} steps",
        difference,
        allowed(subject),
        f"Loss of step 1 to {HALF}: {losses_of(here)} in one run, {losses_of(there)} in the other.\nLook for what depends on the "
        "order of a set, on the time, or on random numbers that trainer.seed does not set (a patch or dataset of your own?).",
    )


def allowed(subject: Subject) -> Tolerance:
    """Nothing on a CPU; on a GPU what rounding does when sums are taken in another order."""
    if not torch.cuda.is_available():
        return Tolerance(0.0, "bitwise on a CPU")
    order = tolerance_for(subject.dtype, layers_of(subject.trainer.model))
    return Tolerance(order.value, f"{order.source}: a GPU adds in the order in which threads arrive")


def apart_by(one: list[Row], other: list[Row]) -> float:
    """The largest relative difference of two runs' losses and gradient norms; nan stays. Inf where the steps are not the
    same ones, or their learning rates or tokens: no order of sums changes those.
    """
    if [row["step"] for row in one] != [row["step"] for row in other] or not one:
        return float("inf")
    largest = 0.0
    for mine, theirs in zip(one, other, strict=True):
        if any(mine[key] != theirs[key] for key in ("lr", "tokens")):
            return float("inf")
        for key in ("loss", "grad_norm"):
            a, b = (float("nan") if row[key] is None else float(row[key]) for row in (mine, theirs))
            largest = larger(largest, 0.0 if a == b else abs(a - b) / max(abs(a), abs(b), 1e-12))
    return largest


def losses_of(rows: list[Row]) -> str:
    """Their losses in words; metrics.jsonl has null for what is not a number."""
    return ", ".join("not a number" if row["loss"] is None else f"{row['loss']:.8g}" for row in rows)
