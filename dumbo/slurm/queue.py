"""What SLURM says of jobs: scontrol while it remembers them (minutes after they end), sacct where there is accounting.

Source: https://slurm.schedmd.com/squeue.html (job states), https://slurm.schedmd.com/scontrol.html
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

WAITS = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
RUNS = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})
NO_TASK = str(2**32 - 2)
"""SLURM's number for none."""
SECONDS = 60
"""A controller that is busy answers late."""


@dataclass(frozen=True)
class Queued:
    """A job as SLURM knows it.

    Attributes:
        state: SLURM's word, as RUNNING or NODE_FAIL.
        reason: why it waits, or ended; "".
        code: its exit code; None while it is not over. 128 and the signal's number where one ended it.
        restarts: how often SLURM started it again.
    """

    state: str
    reason: str = ""
    code: int | None = None
    restarts: int = 0

    @property
    def waits(self) -> bool:
        return self.state in WAITS

    @property
    def runs(self) -> bool:
        return self.state in RUNS

    @property
    def over(self) -> bool:
        return not self.waits and not self.runs


def queued(jobs: Iterable[str]) -> dict[str, Queued]:
    """What SLURM knows of these jobs; those that it has forgotten are left out.

    Args:
        jobs: numbers, as 12 or 12_3.

    Raises:
        OSError, TimeoutExpired: SLURM does not answer.
    """
    wanted = set(jobs)
    found: dict[str, Queued] = {}
    for array in sorted({job.partition("_")[0] for job in wanted}):
        known = _remembered(array)
        rest = known.get(f"{array}_")
        for job in (job for job in wanted if job.partition("_")[0] == array):
            if (one := known.get(job, rest)) is not None:
                found[job] = one
    if forgotten := sorted(wanted - set(found)):
        found.update(_accounted(forgotten))
    return found


def jobs_of_scripts(folder: Path) -> list[str]:
    """The user's jobs in the queue whose script lies in a folder, as 12 or 12_3.

    Raises:
        OSError, TimeoutExpired: SLURM does not answer.
    """
    shown = _run("squeue", "--me", "--array", "--noheader", "--format", "%i|%o")
    if shown.returncode:
        raise OSError(shown.stderr.strip() or f"squeue: exit code {shown.returncode}")
    lines = [line.strip().partition("|") for line in shown.stdout.splitlines()]
    return [job for job, _, script in lines if script and Path(script).parent.resolve() == folder.resolve()]


def cancel(jobs: Sequence[str]) -> str | None:
    """Takes jobs out of the queue, or ends them; what SLURM said when it would not. One that is over already is none."""
    if not jobs:
        return None
    try:
        asked = _run("scancel", *jobs)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if not asked.returncode:
        return None
    said = asked.stderr.splitlines()
    return "\n".join(line for line in said if "Invalid job id" not in line) or (None if said else "no reason given")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def _remembered(array: str) -> dict[str, Queued]:
    """Job -> what the controller knows. `12_`: those tasks of array 12 that were cancelled before they began; it names none."""
    shown = _run("scontrol", "--oneliner", "show", "job", array)
    if shown.returncode and "Invalid job id" not in shown.stderr:
        raise OSError(shown.stderr.strip() or f"scontrol: exit code {shown.returncode}")
    found: dict[str, Queued] = {}
    for line in shown.stdout.splitlines():
        facts = dict(re.findall(r"(\w+)=(\S*)", line))
        if "JobState" not in facts:
            continue
        one = Queued(
            facts["JobState"],
            "" if facts.get("Reason") == "None" else facts.get("Reason", ""),
            None if facts["JobState"] in WAITS | RUNS else _code(facts.get("ExitCode", "0:0")),
            int(facts.get("Restarts", 0)),
        )
        if facts.get("ArrayTaskId") == NO_TASK:
            found[f"{array}_"] = one
        elif "ArrayTaskId" in facts:
            found.update({f"{array}_{index}": one for index in _indices(facts["ArrayTaskId"])})
        else:
            found[facts["JobId"]] = one
    return found


def _indices(text: str) -> list[int]:
    """`3`, `4-9%2`, `1,3-5`."""
    found: list[int] = []
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        last, _, step = last.partition(":")
        found += range(int(first), int(last or first) + 1, int(step or 1))
    return found


def _code(text: str) -> int:
    """`CODE:SIGNAL`."""
    code, _, number = text.partition(":")
    return 128 + int(number) if number not in ("", "0") else int(code)


def _accounted(jobs: Sequence[str]) -> dict[str, Queued]:
    """From accounting; {} where the cluster has none."""
    try:
        shown = _run("sacct", "-n", "-P", "-X", "-o", "JobID,State,ExitCode", "-j", ",".join(jobs))
    except FileNotFoundError:
        return {}
    rows = [line.split("|") for line in shown.stdout.splitlines() if not shown.returncode]
    return {
        job: Queued(state.split()[0], "", None if state in WAITS | RUNS else _code(code))
        for job, state, code in (row for row in rows if len(row) == 3)
        if job in jobs
    }
