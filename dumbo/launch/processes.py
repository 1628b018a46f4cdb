"""The processes of the ranks on this machine: which there are, which live, and an end to all of them.

Each rank writes its number into the node's folder when it can hear signals; before that it is known as a child of this
process with that folder in its environment.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

FOLDERS = "dumbo-launch-"


def node_folder() -> Path:
    """Where this process keeps what it needs while its ranks run: not in the run's folder, whose disk may be full.

    What a killed one left is removed.
    """
    place = Path(tempfile.gettempdir())
    for left in place.glob(f"{FOLDERS}*"):
        pid = left.name.removeprefix(FOLDERS)
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)
    return place / f"{FOLDERS}{os.getpid()}"


@dataclass(frozen=True)
class Processes:
    """The ranks that a node's folder tells of."""

    folder: Path

    def pids(self) -> dict[int, int]:
        """Rank -> process, of those that can hear signals by now."""
        found = {}
        for file in self.folder.glob("pid-*"):
            with suppress(ValueError, OSError):
                found[int(file.name.removeprefix("pid-"))] = int(file.read_text())
        return found

    def gone(self) -> list[int]:
        """Ranks whose process has ended."""
        return [rank for rank, pid in self.pids().items() if not alive(pid)]

    def living(self) -> list[int]:
        """Processes that were started for this run and live, also those that have not said their number yet."""
        found = [pid for pid in self.pids().values() if alive(pid)]
        mark = f"DUMBO_LAUNCH_FOLDER={self.folder}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile, or is another user's
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == os.getpid() and mark in (entry / "environ").read_bytes() and alive(int(entry.name)):
                    found.append(int(entry.name))
        return found

    def kill(self) -> None:
        """All of them, with what they started."""
        for pid in self.living():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return not Path("/proc/self").exists()
