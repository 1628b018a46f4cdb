"""What a job in SLURM writes of itself, beside its run: whoever watches needs no accounting, and may come late.

SWEEP/.submitit/NAME.json, written whole by the job's first node when it begins and when it ends.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from dumbo.outputs.places import now
from dumbo.outputs.whole_file import write_whole


@dataclass(frozen=True)
class Note:
    """How a job is doing, as the process that runs it knows it.

    Attributes:
        job: its number in SLURM, as 12_3.
        attempt: starts so far.
        timeouts: how often the time limit ended one.
        stuck: how often in a row a time limit ended it no step further than the one before.
        failures: how often one failed and was started again.
        step: of the newest checkpoint when the last one ended.
        began, ended: of the newest start (ISO, UTC); ended is "" while it runs.
        seconds: of all starts that have ended.
        code: the newest exit code; None while it runs.
        next: what comes after it: "" (nothing), or why SLURM was asked to start it again.
        said: what is to be told about its end, besides what the run itself says.
    """

    job: str = ""
    attempt: int = 0
    timeouts: int = 0
    stuck: int = 0
    failures: int = 0
    step: int = -1
    began: str = ""
    ended: str = ""
    seconds: float = 0.0
    code: int | None = None
    next: str = ""
    said: str = ""

    @classmethod
    def read(cls, file: Path) -> Note:
        """The note; an empty one where there is none yet, or what a lost node left of it."""
        try:
            found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except ValueError:
            found = {}
        found = found if isinstance(found, dict) else {}
        return cls(**{one.name: found[one.name] for one in fields(cls) if one.name in found})

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(asdict(self)) + "\n")

    def beginning(self, job: str) -> Note:
        """The note of a new start; a job that was submitted anew may fail and run out of time anew."""
        kept = self if job == self.job else Note(attempt=self.attempt, seconds=self.seconds)
        return replace(kept, job=job, attempt=self.attempt + 1, began=now(), ended="", code=None, next="", said="")
