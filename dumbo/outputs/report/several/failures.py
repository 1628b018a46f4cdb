"""Jobs that did not finish, those that ended alike together, each with its last lines."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from dumbo.outputs.report.several.jobs import Job, Several

UNFINISHED = ("failed", "interrupted", "pruned", "cancelled")
MOST_NAMED = 60


@dataclass(frozen=True)
class Failure:
    """One way to end.

    Attributes:
        state: failed, interrupted, pruned, cancelled.
        first_line: what they have in common.
        lines: the last lines of the first of them.
        jobs: all of them.
    """

    state: str
    first_line: str
    lines: str
    jobs: list[Job]

    def names(self, most: int = MOST_NAMED) -> str:
        """The first, and how many more."""
        more = len(self.jobs) - most
        listed = ", ".join(job.short for job in self.jobs[:most])
        return f"{listed} and {more:,} more" if more > 0 else listed

    @property
    def codes(self) -> str:
        """Exit codes, where the ledger has them."""
        found = sorted({code for job in self.jobs if (code := job.row.number("exit_code")) is not None})
        return ", ".join(str(code) for code in found)


def failures(several: Several) -> list[Failure]:
    """The most frequent first; what was pruned or cancelled on purpose last."""
    alike: dict[tuple[str, str], list[Job]] = defaultdict(list)
    for job in several.jobs:
        if job.state in UNFINISHED:
            alike[job.state, _kind(job.error)].append(job)
    found = [Failure(state, _last(jobs[0].error), jobs[0].error, jobs) for (state, _), jobs in alike.items()]
    return sorted(found, key=lambda one: (UNFINISHED.index(one.state), -len(one.jobs)))


def _last(error: str) -> str:
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _kind(error: str) -> str:
    """An error without its numbers and paths: those differ from job to job."""
    lines = [line for line in error.splitlines() if line.strip()]
    return re.sub(r"(/[^\s:,'\"]+)|(0x[0-9a-f]+)|(\d+(\.\d+)?)", "…", "\n".join(lines[-3:]))
