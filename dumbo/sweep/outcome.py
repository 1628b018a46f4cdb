"""How a job ended: its exit code, run.json and the last lines of its log become its row in the ledger.

run.json decides: a run that says it is finished is done, whatever killed the process afterwards.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dumbo.outputs.places import now
from dumbo.outputs.printable import printable
from dumbo.outputs.runs import facts_if_whole
from dumbo.sweep.ledger import Row, State

LAST_LINES = 3
LONGEST_ERROR = 1000
LOG_END = 64 * 2**10
"""Bytes of a log that are looked at: one may have grown to any size."""
FOR_THE_USER = (2, 3, 4)
"""Exit codes of what is to be mended in config or data: the same again ends the same."""
INTERRUPTED = (130, 143, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)

Asked = Literal["stop", "prune"] | None
"""What the sweep asked of the job before it ended."""


def ended(
    row: Row, folder: Path, metric: str, *, code: int | None, asked: Asked, seconds: float, said: str
) -> dict[str, Any]:
    """What changes in a job's row at the end of an attempt.

    Args:
        folder: its run's.
        metric: of run.json's metrics, the sweep's.
        code: exit code; None: nobody waited for it.
        seconds: of this attempt.
        said: what it printed in this attempt.
    """
    facts = facts_if_whole(folder)
    state = _state(facts, code, asked)
    metrics = facts.get("metrics") or {} if state == "done" else {}
    return {
        "state": state,
        "config_hash": str(facts.get("config_hash") or row.config_hash),
        "ended": now(),
        "seconds": round(row.seconds + seconds, 3),
        "exit_code": code,
        "metrics": metrics,
        "result": result_of(metrics, metric),
        "error": _error(facts, code, said) if state == "failed" else None,
    }


def result_of(metrics: Mapping[str, Any], metric: str) -> float | None:
    """The sweep's metric among a run's; None where it is there not, or no number."""
    value = metrics.get(metric)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _state(facts: dict[str, Any], code: int | None, asked: Asked) -> State:
    if facts.get("status") == "finished":
        return "done"
    if asked == "prune":
        return "pruned"
    stopped_itself = code == 0 and facts.get("status") == "preempted"  # trainer.max_time, SIGUSR1
    if asked == "stop" or code is None or stopped_itself or code in INTERRUPTED:
        return "interrupted"
    return "failed"


def _error(facts: dict[str, Any], code: int | None, said: str) -> str:
    lines = [line.rstrip() for line in said.splitlines() if line.strip()][-LAST_LINES:]
    if not lines and facts.get("error"):
        lines = str(facts["error"]).splitlines()[-LAST_LINES:]
    if code is not None and code < 0:
        lines.append(f"ended by {_name(-code)}" + (_memory() if -code == signal.SIGKILL else ""))
    return printable("\n".join(lines) or "no output", keep="\n")[-LONGEST_ERROR:]


def _memory() -> str:
    return ", as the system does when the machine's memory is full"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def end_of_log(file: Path, began: int = 0) -> str:
    """The last of what a log holds from a byte on; "" where there is none any more."""
    try:
        with file.open("rb") as log:
            log.seek(max(began, log.seek(0, os.SEEK_END) - LOG_END))
            return log.read(LOG_END).decode("utf-8", errors="replace")
    except OSError:
        return ""


def may_be_tried_again(row: Row, code: int | None) -> bool:
    """Whether the same again in this sweep could end another way."""
    return row.state in ("failed", "interrupted") and code not in (0, *FOR_THE_USER)
