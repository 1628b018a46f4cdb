"""Sweeps in SLURM as a user starts them, and what they leave on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def _environment() -> dict[str, str]:
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "CI": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def on_the_command_line(folder: Path, *words: str, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """`python -m dumbo WORDS` in a folder, to its end."""
    command = [sys.executable, "-m", "dumbo", *words]
    return subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, timeout=timeout)


class Watched:
    """`python -m dumbo -m hydra/launcher=submitit_slurm …`, which submits and watches.

    Attributes:
        folder: the sweep's.
    """

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder, self._out = folder / "sweep", folder / "said.txt"
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "dumbo", "-m", "hydra/launcher=submitit_slurm", *words, "sweep_dir=sweep"]
        with self._out.open("a") as out:
            self.process = subprocess.Popen(command, cwd=folder, env=_environment(), stdout=out, stderr=out)

    @property
    def said(self) -> str:
        return self._out.read_text(errors="replace")

    def wait(self, timeout: float = 500) -> int:
        return self.process.wait(timeout)

    def until(self, true: Callable[[], Any], timeout: float = 300) -> Any:
        """Waits until something is so; returns it."""
        end = time.monotonic() + timeout
        while not (found := true()):
            if time.monotonic() > end or self.process.poll() not in (None, 0):
                raise AssertionError(f"it did not come to be:\n{self.said}\n{self.logs()}")
            time.sleep(0.02)
        return found

    def logs(self) -> str:
        files = [*self.folder.glob("*.log"), *self.folder.glob(".submitit/*_log.*")]
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-2000:]}" for file in files)

    def rows(self) -> list[dict[str, Any]]:
        """The ledger, the last line of each job."""
        file = self.folder / "ledger.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        return list({row["number"]: row for row in lines}.values())

    def run(self, number: int) -> Path:
        return next(path for path in self.folder.glob(f"{number:03d}*") if path.is_dir())

    def job(self, number: int = 0) -> str:
        """Its number in SLURM."""
        return str(self.rows()[number]["device"]).removeprefix("slurm ")


def facts_of(run: Path) -> Mapping[str, Any]:
    return json.loads((run / "run.json").read_text())
