"""Handlers of the signals that stop a run: whole whenever one comes, and gone with the block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from dumbo.trainer.signals import EXIT_CODES, handled_by

NUMBERS = [getattr(signal, name) for name in EXIT_CODES if hasattr(signal, name)]


class Stop(BaseException):
    pass


def stops(number: int, frame: Any) -> None:
    raise Stop


@pytest.mark.parametrize("at", range(2 * len(NUMBERS)))
def test_a_signal_while_handlers_are_changed_leaves_none_behind(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each change, going in and coming out, with handlers that raise outside and inside."""
    change, changes = signal.signal, 0

    def changed(number: int, handler: Any) -> Any:
        nonlocal changes
        earlier = change(number, handler)
        if changes == at:
            os.kill(os.getpid(), NUMBERS[0])
        changes += 1
        return earlier

    def inside() -> None:
        with handled_by(stops):
            raised.append("inside")

    raised: list[str] = []
    with handled_by(stops):
        before = [signal.getsignal(number) for number in NUMBERS]
        monkeypatch.setattr(signal, "signal", changed)
        with pytest.raises(Stop):
            inside()
        monkeypatch.undo()
        assert [signal.getsignal(number) for number in NUMBERS] == before
    assert changes == 2 * len(NUMBERS)
    assert raised == ["inside"] * (at >= len(NUMBERS)), "what came before the block did not run it"


COPY = """
import os, signal
from dumbo.errors import Stopped
from dumbo.trainer import signals
change, changes = signal.signal, 0

def changed(number, handler):
    global changes
    earlier = change(number, handler)
    if changes in (4, 5):  # on the way out, SIGTERM is still to be changed
        os.kill(os.getpid(), signal.SIGTERM)
    changes += 1
    return earlier

signal.signal = changed
try:
    with signals.interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
except Stopped as stop:
    print(stop.signal_name, changes)
"""


def test_copies_while_the_last_handlers_go_do_not_end_the_process() -> None:
    """Some defaults are back already, SIGTERM's is not."""
    done = subprocess.run([sys.executable, "-c", COPY], capture_output=True, text=True, check=False)
    assert done.stdout == f"SIGTERM {2 * len(NUMBERS)}\n", (done.returncode, done.stderr)
