"""Handlers of the signals that stop a run: whole whenever one comes, and gone with the block; the end of a process has an end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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


HANGS = """
import sys, threading, time
from dumbo.trainer import signals
signals.LEAVING = 1.0
threading.Thread(target=time.sleep, args=(60,)).start()
signals.leaving(7)
print("left", flush=True)
sys.exit(7)
"""


def test_a_library_that_hangs_does_not_keep_a_process_that_was_stopped() -> None:
    process = subprocess.Popen([sys.executable, "-c", HANGS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "left\n"
    began = time.monotonic()
    for number in NUMBERS:  # copies
        process.send_signal(number)
    assert process.wait(30) == 7
    assert time.monotonic() - began < 20
