"""Proof: two runs with the same seed give the same numbers, each in a process of its own.

Losses, gradient norms, learning rates and tokens of the first steps, weights and optimizer after them, of the very trainer.
On a CPU bit by bit; on a GPU some sums are taken in the order in which its threads arrive: there two runs with one seed are
ten times nearer to each other than to a run with another seed, or the proof says that it cannot tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumbo.verify.digests import farthest
from dumbo.verify.noise import TENTH, against_another_seed, bitwise_here, same, worst
from dumbo.verify.proof import DoesNotApplyError, Proof, Tolerance, larger, measured
from dumbo.verify.steps import HALF, Row, first_half, other_seed, straight

if TYPE_CHECKING:
    from dumbo.verify.subject import Subject

BITWISE = Tolerance(0.0, "bitwise")
ON_CPU = Tolerance(0.0, "bitwise on a CPU")


def determinism(subject: Subject) -> Proof:
    """The first k steps of the run here and of the run in another process."""
    here, there = straight(subject), first_half(subject)
    subject.shared["deterministic"] = None  # not known, should an error end this
    here = {**here, "rows": here["rows"][:HALF]}
    rows = apart_by(here["rows"], there["rows"])
    state, said = farthest(here["half"], there["half"])
    compared = (
        f"two runs with seed {getattr(subject.plugins.trainer, 'seed', 0)} in two processes: losses, gradient norms, learning "
        f"rates and tokens of {HALF} steps, and {len(here['half'])} tensors of weights and optimizer after them"
    )
    fault = (
        f"Loss of step 1 to {HALF}: {losses_of(here['rows'])} in one run, {losses_of(there['rows'])} in the other; {said}.\n"
        "Look for what depends on the order of a set, on the time, or on random numbers that trainer.seed does not set (a patch "
        "or dataset of your own?)."
    )
    if bitwise_here() or not rows < float("inf") or same(here, there, ("half",)):
        proof = measured("determinism", compared, larger(rows, state), ON_CPU if bitwise_here() else BITWISE, fault)
    else:
        proof = _beside_another_seed(subject, here, there, compared, fault)
    subject.shared["deterministic"] = proof.passed
    return proof


def _beside_another_seed(
    subject: Subject, here: dict[str, Any], there: dict[str, Any], compared: str, fault: str
) -> Proof:
    """Where the same bits are not to be had."""
    strange = other_seed(subject)
    dtype = subject.dtype
    seen = [one for one in against_another_seed(here, there, strange, HALF, dtype) if one.tells]
    if not seen:
        raise DoesNotApplyError(
            f"it cannot tell: on this machine two runs differ, and another trainer.seed changes nothing in {HALF} steps that it "
            "could be held against"
        )
    one = worst(seen)
    return measured(
        "determinism",
        f"{compared}; furthest apart: {one.what}",
        one.difference,
        Tolerance(TENTH, "of their distance from a run with another seed; sums of a GPU have no fixed order"),
        f"{fault}\nBy {one.what}, two runs with one seed are {one.difference:.0%} as far apart as two with two seeds.",
    )


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
