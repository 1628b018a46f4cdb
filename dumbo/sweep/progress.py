"""How far a running job is: new rows of its metrics.jsonl, and run.json until it says how many steps there are."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dumbo.outputs.runs import facts_if_whole


@dataclass
class Progress:
    """What is known of a run's folder.

    Attributes:
        step, total: of its optimizer steps; None: not known yet.
        loss: the last one logged.
        step_seconds: how long a step took last.
    """

    folder: Path
    step: int | None = None
    total: int | None = None
    loss: float | None = None
    step_seconds: float | None = None
    _read: int = 0
    _file: int = 0

    def new_rows(self) -> list[dict[str, Any]]:
        """The rows that were written since the last call; from the first again when the file is another one (a resumed run)."""
        file = self.folder / "metrics.jsonl"
        try:
            with file.open("rb") as opened:
                stat = os.fstat(opened.fileno())
                if stat.st_ino != self._file or stat.st_size < self._read:
                    self._file, self._read = stat.st_ino, 0
                opened.seek(self._read)
                text = opened.read()
        except OSError:  # there is none yet; or a file system that does not answer, which is the job's trouble
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        rows = []
        for line in whole.splitlines():
            with suppress(ValueError):  # cut short by a kill; the run writes it again
                rows.append(json.loads(line))
        rows = [row for row in rows if isinstance(row, dict)]
        for row in rows:
            self._take(row)
        if self.total is None and rows:
            self.total = facts_if_whole(self.folder).get("planned_steps")
        return rows

    def _take(self, row: dict[str, Any]) -> None:
        self.step = row.get("step", self.step)
        if "loss" in row:
            self.loss = row["loss"]
            self.step_seconds = row["step_ms"] / 1000 if row.get("step_ms") else self.step_seconds

    @property
    def seconds_left(self) -> float | None:
        if self.step is None or self.total is None or self.step_seconds is None:
            return None
        return max(0, self.total - self.step) * self.step_seconds
