"""A process that a signal stopped is gone in time with its exit code, whatever hangs and whatever comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

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

class Stalled:  # like a pipe whose reader has stopped: one write holds it for good
    lock = threading.Lock()

    def write(self, text):
        with self.lock:
            time.sleep(60)

    def flush(self):
        with self.lock:
            pass

said = sys.stdout
{hangs}
leaving.leaving(7)
print("left", file=said, flush=True)
sys.exit(7)
"""
HANGS = {
    "a thread": "threading.Thread(target=time.sleep, args=(60,)).start()",
    "a goodbye": "atexit.register(time.sleep, 60)",
    "a destructor": "kept = Lingers()",
    "no output": "threading.Thread(target=time.sleep, args=(60,)).start(); sys.stdout = None",
    "output that nobody takes": "sys.stdout = Stalled(); threading.Thread(target=sys.stdout.write, args=('',)).start()",
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


def test_goodbyes_of_what_was_imported_before_are_said(tmp_path: Path) -> None:
    """In a job that is forked from a process with the libraries imported, too."""
    script = f"""
import atexit, os, sys
from dumbo.leaving import leaving, owned
owned()
atexit.register(lambda: open({str(tmp_path / "said")!r}, "w").close())
if os.fork() == 0:
    owned()
    leaving(7)
    sys.exit(7)
_, status = os.wait()
os._exit(os.waitstatus_to_exitcode(status))
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 7
    assert (tmp_path / "said").exists()
