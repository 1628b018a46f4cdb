"""One job of a sweep as a process of its own, which gets the signals that its parent gets, and dies with it."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

PARENT_DEATH_SIGNAL = 1
"""prctl's PR_SET_PDEATHSIG (Linux)."""


def run_job(words: Sequence[str], log: Path) -> tuple[int, str | None]:
    """Runs `python -m dumbo WORDS`, its output in a file.

    The job is no member of the terminal's group: Ctrl-C reaches it once, through here, and it has the time it needs
    to save. A second Ctrl-C reaches it too (and it gives up on saving).

    Returns:
        its exit code, and the name of the signal that asked the sweep to stop meanwhile (None: nothing did).
    """
    heard: list[str] = []
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dumbo", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=_die_with_parent(),
        )

        def forward(number: int, frame: FrameType | None) -> None:
            heard.append(signal.Signals(number).name)
            process.send_signal(number)

        before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = process.wait()
        finally:
            for number, earlier in before.items():
                signal.signal(number, earlier)
    return code, (heard[0] if heard else None)


def _die_with_parent() -> Callable[[], None] | None:
    """What a new process calls first: the kernel sends it SIGTERM when its parent is gone. Linux only."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)
