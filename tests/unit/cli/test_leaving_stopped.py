"""A process that a signal stopped is gone in time with its exit code, whatever hangs and whatever comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from dumbo.trainer.signals import EXIT_CODES

STOPPED = """
import atexit, sys, threading, time
from dumbo import leaving
from dumbo.leaving import owned
owned()
leaving.LEAVING = 1.0

class Lingers:
    def __del__(self):
        time.sleep(60)

{hangs}
leaving.leaving(7)
print("left", flush=True)
sys.exit(7)
"""
HANGS = {
    "a thread": "threading.Thread(target=time.sleep, args=(60,)).start()",
    "a goodbye": "atexit.register(time.sleep, 60)",
    "a destructor": "kept = Lingers()",
    "nothing": "",
}


@pytest.mark.parametrize("what", HANGS)
def test_what_hangs_does_not_keep_it(what: str) -> None:
    command = [sys.executable, "-c", STOPPED.format(hangs=HANGS[what])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "left\n"
    began = time.monotonic()
    for name in EXIT_CODES:
        if hasattr(signal, name):
            process.send_signal(getattr(signal, name))
    assert process.wait(50) == 7
    assert time.monotonic() - began < 30
