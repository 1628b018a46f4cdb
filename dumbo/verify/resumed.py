"""Proofs: k steps, a stop, and k more in another process are 2k steps.

The stop is the signal that a cluster sends; what is gone on from is the checkpoint that the run then saves.

resume, state   weights, masters and the optimizer's state, as they were when the run was stopped, are those with which the
                other process begins. Bit by bit on every device: nothing is computed between saving and loading.
resume          losses, gradient norms, learning rates and tokens of the steps after the stop, and all tensors at the end,
                are those of the run without a stop. On a CPU bit by bit; where sums have no fixed order, within a multiple of
                what a repetition of the run differs by (`noise.py`), as long as that is enough to tell.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dumbo.verify.determinism import BITWISE, ON_CPU, apart_by, determinism, losses_of
from dumbo.verify.digests import farthest, unequal
from dumbo.verify.noise import MULTIPLE, TENTH, against_repetition, bitwise_here, same, worst
from dumbo.verify.passes import layers_of
from dumbo.verify.proof import DoesNotApplyError, Proof, Tolerance, exact, larger, measured, rms_tolerance
from dumbo.verify.steps import HALF, again, first_half, second_half, straight

if TYPE_CHECKING:
    from dumbo.verify.subject import Subject

REMEDY = "Do not rely on resume=… with these plugins."


def resumed(subject: Subject) -> list[Proof]:
    """What is loaded, and the k steps after it."""
    whole, stopped = straight(subject), first_half(subject)
    after = second_half(subject)
    return [_loaded(stopped["half"], after["first"]), _gone_on(subject, whole, after)]


def _loaded(saved: dict[str, Any], loaded: dict[str, Any]) -> Proof:
    lost = unequal(saved, loaded)
    shown = ", ".join(lost[:3]) + (f" and {len(lost) - 3:,} more" if len(lost) > 3 else "")
    return exact(
        "resume, state",
        f"{len(saved)} tensors of weights and optimizer, when the run was stopped and when another process goes on with it",
        f"{len(lost)} of {len(saved)} tensors are not what was saved: {shown}.\n{REMEDY}" if lost else None,
    )


def _gone_on(subject: Subject, whole: dict[str, Any], after: dict[str, Any]) -> Proof:
    compared = (
        f"{2 * HALF} steps, and {HALF} + {HALF} with a stop by SIGUSR1 and another process: losses, gradient norms, learning "
        f"rates and tokens, and {len(whole['end'])} tensors of weights and optimizer at the end"
    )
    if "deterministic" not in subject.shared:
        with suppress(DoesNotApplyError):  # it cannot tell: no reason against this one
            determinism(subject)
    if subject.shared["deterministic"] is False:
        return _left_out("two runs with the same seed differ, so that there is nothing to compare with")
    rest = {**whole, "rows": whole["rows"][HALF:]}
    rows = apart_by(rest["rows"], after["rows"])
    state, said = farthest(whole["end"], after["end"])
    fault = (
        f"After the stop the run is another one: losses {losses_of(rest['rows'])} without it, {losses_of(after['rows'])} after "
        f"it; at the end {said}.\n{REMEDY}"
    )
    if bitwise_here() or not rows < float("inf") or same(rest, after, ("end",)):
        return measured("resume", compared, larger(rows, state), ON_CPU if bitwise_here() else BITWISE, fault)
    return _beside_repetition(subject, whole, after, compared, fault)


def _beside_repetition(
    subject: Subject, whole: dict[str, Any], after: dict[str, Any], compared: str, fault: str
) -> Proof:
    """Where the same bits are not to be had."""
    dtype, layers = subject.dtype, layers_of(subject.trainer.model)
    subject.release()
    rounding = rms_tolerance(dtype, 0 if dtype.itemsize < 4 else layers)
    seen = against_repetition(whole, after, again(subject), HALF, rounding, dtype)
    tell = [one for one in seen if one.tells]
    one = worst(tell)
    if one.passed and not any(one.what not in ("losses", "gradient norms") for one in tell):
        noise = min((each.allowed for each in seen if not each.tells), default=1.0)
        return _left_out(
            f"it cannot tell: a repetition of the run differs from it so much that {noise:.0%} of what {HALF} steps change would "
            f"have to be allowed, and {TENTH:.0%} is the most with which a lost state is seen"
        )
    unseen = [each.what for each in seen if not each.tells]
    beside = f" ({', '.join(unseen)}: too noisy here to tell)" if unseen else ""
    return measured(
        "resume",
        f"{compared}{beside}; furthest apart: {one.what}",
        one.difference,
        Tolerance(one.allowed, f"{MULTIPLE} x what a repetition differs by, at least a rounding of {str(dtype)[6:]}"),
        fault,
    )


def _left_out(reason: str) -> Proof:
    return Proof(name="resume", compared="", difference=None, tolerance=None, source="", passed=None, detail=reason)
