"""Thresholds on the audit: which counts have one, which are over it, and what to do about each.

    options.py (names and numbers are checked) -> preview (`preview.fail_on`), train (`audit.fail_on`, gate.py)

Imports nothing heavy: a wrong name is refused before anything is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dumbo.errors import UserError
from dumbo.suggest import did_you_mean

ROOM = "raise trainer.max_seq_len, or write trainer.too_long=split"
REMEDIES = {
    "skipped": "mend the rows; their problems stand in preview",
    "too_long": ROOM,
    "truncated": ROOM,
    "truncated_tokens": ROOM,
    "dropped": ROOM,
    "split": "raise trainer.max_seq_len",
    "zero_label_rows": "nothing in these rows is trained: raise trainer.max_seq_len where their answers are cut off, set "
    "formatter.loss_on, or take the rows out",
    "end_token_missing": "let the template end each answer with its end token, or raise trainer.max_seq_len",
    "end_token_untrained": "the model would not learn to stop: let the template end each answer with a control token; "
    "formatter=jinja and formatter=completion add the tokenizer's eos with formatter.append_eos=true",
    "doubled_bos": "the bos is written twice: take it out of the template, or out of the text",
    "control_tokens_in_text": "take them out of the text",
    "control_tokens_unescaped": "text of the data would end or begin turns: write formatter.special_tokens_in_text=escape",
    "rows_with_control_tokens": "take them out of the text",
    "duplicates": "take them out of the data",
    "eval_rows_in_train": "take them out of one of the two",
    "reasoning_dropped_by_template": "write formatter.tool_calls=as_text, or take a template that renders reasoning",
    "train_marks_ignored": "write formatter.loss_on=field",
    "boundary_tokens": "move the white space before an answer into the template's prompt",
}
"""Counts of the audit that may have a threshold -> what to do when one is over it."""
GATES = tuple(REMEDIES)
OF_TOKENS = ("truncated_tokens",)
"""Counts of tokens: their share is of all tokens before any cut; that of the others is of the rows."""


@dataclass(frozen=True)
class Over:
    """A count that is over its threshold.

    Attributes:
        name, found: the count.
        share: of all rows (or tokens).
        allowed: the threshold.
        rows: where the first of them stand.
        remedy: what to do.
    """

    name: str
    found: int
    share: float
    allowed: float
    rows: tuple[str, ...] = ()
    remedy: str = ""

    def __str__(self) -> str:
        of = "tokens" if self.name in OF_TOKENS else "rows"
        share = f" ({100 * self.share:.2f}% of the {of})" if 0 < self.allowed < 1 else ""
        return f"{self.name} is {self.found:,}{share}, allowed: {self.allowed:g}"

    @property
    def enough(self) -> str:
        """The threshold that would let it through, as it is typed."""
        if not 0 < self.allowed < 1:
            return str(self.found)
        share = math.ceil(1000 * self.share) / 1000
        return f"{share:g}" if share < 1 else "null"


def over_thresholds(audit: Mapping[str, Any], fail_on: Mapping[str, float | None]) -> list[Over]:
    """The thresholds that an audit is over: a whole number counts, a fraction below 1 is a share; null: none."""
    over = []
    for name, most in fail_on.items():
        if most is None:
            continue
        total = audit["source_tokens"] if name in OF_TOKENS else audit["rows"]
        if audit[name] > (most * total if 0 < most < 1 else most):
            rows = tuple(audit.get("first_rows", {}).get(name, ()))
            over.append(Over(name, audit[name], audit[name] / max(1, total), most, rows, REMEDIES[name]))
    return over


def check_thresholds(fail_on: Mapping[str, float | None], section: str) -> None:
    """Raises UserError for a name that is no count of the audit, or a negative threshold.

    Args:
        section: of the config: preview, audit.
    """
    for name, most in fail_on.items():
        if name not in GATES:
            raise UserError(
                f"{section}.fail_on.{name}: the audit has no such count.{did_you_mean(name, GATES)}\n  counts: {', '.join(GATES)}"
            )
        if most is not None and most < 0:
            raise UserError(f"{section}.fail_on.{name} must be at least 0, got {most:g}.")
