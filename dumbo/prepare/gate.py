"""The audit as a gate: what is wrong with the whole data set stops a run before any weights are loaded.

prepare (once, before any rank starts) -> the audit, into run.json -> over a threshold of `audit.fail_on`? -> weights
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from dumbo.errors import GateFailed
from dumbo.prepare.gates import Over, over_thresholds

if TYPE_CHECKING:
    from dumbo.options import AuditOptions
    from dumbo.outputs.run_dir import RunDir
    from dumbo.prepare.store import PreparedSplits


def gate(data: PreparedSplits, options: AuditOptions, run: RunDir, *, speaks: bool = True) -> None:
    """Writes the audit into run.json and holds it against the thresholds.

    Args:
        speaks: under `audit.mode=warn`, say what is over them (the process that starts ranks leaves it to rank 0).

    Raises:
        GateFailed: a count is over its threshold, under `audit.mode=stop`.
    """
    over = over_thresholds(data.audit, options.fail_on) if options.mode != "off" else []
    gated = {"mode": options.mode, "fail_on": dict(options.fail_on), "over": [asdict(one) for one in over]}
    run.update(audit={**data.audit, **gated})
    if over and options.mode == "stop":
        raise GateFailed(refusal(data.name, over))
    if over and speaks:
        run.console.row("audit", "\n".join(line for one in over for line in told(one)))


def refusal(name: str, over: Sequence[Over]) -> str:
    """What is said of data that is not trained on."""
    lines = [f"The audit of {name} is over {'a threshold' if len(over) == 1 else 'thresholds'}; nothing was trained:"]
    for one in over:
        first, *rest = told(one)
        lines += [f"  {first}", *(f"    {line}" for line in rest)]
        lines.append(f"    to let it through: audit.fail_on.{one.name}={one.enough}")
    lines.append(
        "  All thresholds: audit.mode=warn says them and trains, audit.mode=off looks at none. The rows: dumbo preview …"
    )
    return "\n".join(lines)


def told(one: Over) -> list[str]:
    """A count that is over its threshold: what was found, where, and what to do."""
    where = [f"first in {_together(one.rows)}"] if one.rows else []
    return [str(one), *where, one.remedy]


def _together(rows: Sequence[str]) -> str:
    """`a.jsonl, line 3`, `a.jsonl, line 9` as `a.jsonl, line 3, line 9`."""
    said: list[str] = []
    for before, row in zip(["", *rows], rows, strict=False):
        file, _, place = row.rpartition(", ")
        said.append(place if before.rpartition(", ")[0] == file else row)
    return ", ".join(said)
