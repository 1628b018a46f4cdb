"""The end of a process that a signal stopped: in time, and with its own exit code.

While the interpreter ends, a copy of the signal would take the exit code's place, and a library's thread, a goodbye or a destructor
can hang. So signals are ignored from here on, what is waited for before the last goodbye has LEAVING seconds, and nothing comes after it.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from functools import cache

from dumbo.trainer.signals import EXIT_CODES

LEAVING = 10.0
"""Seconds."""

_stopped: list[int] = []


@cache
def owned() -> None:
    """This process is the command's alone. Called before anything else says goodbye at its end: the first to come is the last to go.
    Again, also in a fork, it changes nothing.
    """
    atexit.register(_go)


def leaving(code: int) -> None:
    """From here on the process ends with this exit code, in an `owned` one without Python's own teardown."""
    for name in EXIT_CODES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    _stopped.append(code)
    clock = threading.Timer(LEAVING, os._exit, (code,))
    clock.daemon = True
    clock.start()


def _go() -> None:
    if _stopped:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # none, closed, or somebody's own: nothing more can be said
                stream.flush()
        os._exit(_stopped[0])
