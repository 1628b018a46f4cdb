"""The proofs as a table, a row as soon as each is done."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from dumbo.outputs.places import short

if TYPE_CHECKING:
    from dumbo.outputs.console import Console
    from dumbo.verify.proof import Proof
    from dumbo.verify.subject import Subject

NAME = 22
"""Columns of a proof's name."""
TEXT = 84
"""Columns of what was compared."""
RESULTS = {"pass": "pass", "fail": "FAIL", "reported": "reported", "left out": "left out", "error": "ERROR"}
"""By a proof's state."""


class Table:
    """Draws on a console.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def opened(self, subject: Subject) -> None:
        """What is proven: the data, the model, the patches."""
        data, few = subject.data, subject.documents
        lengths = [int(data.train.store.lengths[document]) for document in few]
        sample = f"{data.train.rows:,} rows" + (f", {data.eval.rows:,} held out" if data.eval else "")
        size = f"; {len(few)} of {min(lengths)} to {max(lengths)} tokens go through the model" if lengths else ""
        self.console.row("data", f"{data.name}  {sample}{size}")
        names = ", ".join(subject.patches) or "none"
        out = [name for name, text in subject.run.facts.get("patches", {}).items() if text.startswith("left out")]
        self.console.row("patches", names + (f" ({', '.join(out)} left out)" if out else ""))
        name = getattr(subject.plugins.model, "name", type(subject.plugins.model).__name__)
        self.console.row("model", f"{name}")

    def begins(self, name: str) -> None:
        """Nothing is drawn: a row comes when the proof is done. The log says which one runs."""
        self.console.log(f"proof: {name}")

    def row(self, proof: Proof) -> None:
        """One proof: result, name, what was compared; below it the numbers, and what is wrong."""
        lines = textwrap.wrap(proof.compared, TEXT) if proof.compared else []
        if numbers := numbers_of(proof):
            lines += textwrap.wrap(numbers, TEXT)
        for part in proof.detail.split("\n") if proof.detail else ():
            lines += textwrap.wrap(part, TEXT, subsequent_indent="  ") or [""]
        self.console.row(RESULTS[proof.state], "\n".join(_beside(proof.name, lines)))

    def stopped(self, found: list[Proof], file: Path) -> None:
        """What ended it stands in the error; here what is known until then."""
        held = sum(proof.state == "pass" for proof in found)
        self.console.row("stopped", f"{held} of the {len(found)} proofs that were done hold")
        self.console.row("", short(file))

    def closed(self, found: list[Proof], seconds: float, file: Path, earlier: Path | None) -> None:
        """How many held, in which time, and where it is written."""
        counts = {state: sum(proof.state == state for proof in found) for state in RESULTS}
        said = {"fail": "FAILED", "error": "ended by an error", "reported": "reported", "left out": "left out"}
        besides = "".join(f", {counts[state]} {words}" for state, words in said.items() if counts[state])
        self.console.row("result", f"{counts['pass']} of {len(found)} proofs hold{besides}, in {seconds:.0f} s")
        before = f"\nthe one before it is {short(earlier)} now" if earlier is not None else ""
        self.console.row("", short(file) + before)


def numbers_of(proof: Proof) -> str:
    """ "difference 1e-07, allowed 3e-05: 16 x eps(float32) x sqrt(256)"."""
    if proof.difference is None:
        return ""
    allowed = "reported only" if proof.tolerance is None else f"allowed {proof.tolerance:.1e} ({proof.source})"
    return f"difference {proof.difference:.1e}, {allowed}"


def _beside(name: str, lines: list[str]) -> list[str]:
    """The first line beside the name, the others below it."""
    first, *rest = lines or [""]
    if len(name) >= NAME:
        return [name, *(f"{'':<{NAME}}{line}" for line in (first, *rest))]
    return [f"{name:<{NAME}}{first}", *(f"{'':<{NAME}}{line}" for line in rest)]
