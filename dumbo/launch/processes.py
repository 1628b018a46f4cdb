"""The processes of the ranks on this machine: which there are, which live, and an end to all of them.

Each rank writes its number into the node's folder when it can hear signals; before that it is known as a child of this
process with that folder in its environment.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

FOLDERS = "dumbo-launch-"
YOUNG = 60.0
"""Seconds in which whoever made a folder has locked it."""


@contextmanager
def node_folder() -> Iterator[Path]:
    """An empty folder of this process while its ranks run: not in the run's folder, whose disk may be full.

    It is locked, so that whoever shares the place (other containers, with process numbers of their own) can tell it
    from what a killed process left, which is removed here.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDERS}*"):
        with suppress(OSError):  # it is another user's, or somebody else removes it
            if time.time() - left.stat().st_mtime > YOUNG:
                with _locked(left):
                    shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDERS}{os.getpid()}-"))
    with _locked(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises OSError when somebody else has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


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

    def gone(self, known: Mapping[int, int]) -> list[int]:
        """Ranks whose process has ended."""
        return [rank for rank, pid in known.items() if not alive(pid)]

    def children(self) -> dict[int, int]:
        """Rank -> process, of those that were started for this run and live, also if they have not said their number yet."""
        found = {}
        mark = f"DUMBO_LAUNCH_FOLDER={self.folder}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile, or is another user's
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) != os.getpid():
                    continue
                values = (entry / "environ").read_bytes().split(b"\0")
                rank = next((int(value[5:]) for value in values if value.startswith(b"RANK=")), None)
                if rank is not None and mark in values and alive(int(entry.name)):
                    found[rank] = int(entry.name)
        return found

    def living(self) -> list[int]:
        """Processes that were started for this run and live, also those that have not said their number yet."""
        return [pid for pid in {*self.pids().values(), *self.children().values()} if alive(pid)]

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
