"""The signals that the process hears which started the ranks: it passes them on, and the ranks act on them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from dumbo.errors import Stopped
from dumbo.trainer.signals import AGAIN, EXIT_CODES, handled_by

MARK = "asked"
"""In the node's folder where a signal came from outside: torch's launcher has SIGTERM for the ranks too, when one of them failed."""
LATER = 0.5
"""Seconds by which the launching process may hear later what everybody was told."""


class Forwarding:
    """What was heard so far, and who was told.

    Args:
        folder: of the node.

    Attributes:
        insisted: time.monotonic() of a SIGINT that came after another one; None: there was none.
    """

    def __init__(self, folder: Path) -> None:
        self._mark, self._marked = folder / MARK, False
        self.insisted: float | None = None
        self._heard: list[int] = []
        self._interrupted: float | None = None
        self._told: set[tuple[int, int]] = set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals for the length of the block; in another thread than the main one nothing changes."""
        with handled_by(self._hear):
            yield

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard.append(number)
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted is None:
                self._interrupted = now
            elif now - self._interrupted >= AGAIN:
                self.insisted = self.insisted or now

    def pass_on(self, pids: Iterable[int]) -> None:
        """Every signal heard so far to every one of these processes, once."""
        if self._heard and not self._marked:
            self._marked = True
            with suppress(
                OSError
            ):  # a full disk: trackers are told "failed" then; the ranks hear the signal all the same
                self._mark.touch()
        for pid in pids:
            for place, number in enumerate(self._heard):
                if (place, pid) not in self._told:
                    self._told.add((place, pid))
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, number)

    def stopped(self) -> Stopped | None:
        """What the last one asks for; None: nothing was heard."""
        if not self._heard:
            return None
        name = signal.Signals(self._heard[-1]).name
        return Stopped(name, EXIT_CODES[name])

    def ended(self, code: int) -> bool:
        """Whether a process with this exit code died of one that this process heard too, before it could listen."""
        return -code in self._heard


def asked_for() -> bool:
    """After a signal: whether somebody asked the run to stop, and not the launcher this rank alone, because another one failed."""
    folder = os.environ.get("DUMBO_LAUNCH_FOLDER")
    if folder is None:
        return True
    until = time.monotonic() + LATER
    while not (found := (Path(folder) / MARK).exists()) and time.monotonic() < until:
        time.sleep(0.05)
    return found
