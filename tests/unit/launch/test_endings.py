"""How a rank ended is written whatever reaches it meanwhile, and what ended first is what is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from dumbo.errors import MemoryFull, RunFailed, Stopped, UserError
from dumbo.launch.endings import Ending, cause, endings
from dumbo.outputs.failure import NO_ANSWER

KILL, ABRT, TERM = -signal.SIGKILL, -signal.SIGABRT, -signal.SIGTERM
OWN = Ending("failed", "RuntimeError: its own", 1)
LOST = Ending("failed", f"{NO_ANSWER} (Connection closed by peer)", 1)
STOPPED = Ending("stopped", "SIGTERM", 143)
USER = Ending("user", "no such column", 2)
FULL = Ending(
    "memory", "CUDA out of memory", 1,
    result={"step": 4, "batch": {"global_": 8, "micro": 4, "ranks": 2, "accumulation": 1}, "asked": 4, "graphs": False},
)  # fmt: skip

FAILS = """
    import os, signal, sys
    from types import SimpleNamespace

    from dumbo.launch import rank


    class Told(RuntimeError):
        '''Told to end by torch's launcher while the traceback is being printed.'''

        def __str__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            return "the exchange broke"


    def run(frozen, folder):
        raise Told


    rank._run = run
    rank.frozen_from_environment = lambda: SimpleNamespace(folder=os.environ["DUMBO_LAUNCH_FOLDER"])
    sys.exit(rank.main())
"""


@pytest.mark.parametrize(
    ("found", "codes", "kind", "said"),
    [
        ({}, {0: TERM, 1: KILL}, RunFailed, "Rank 1 was killed by SIGKILL. The machine may be out of memory."),
        ({}, {0: KILL, 1: TERM}, RunFailed, "Rank 0 was killed by SIGKILL"),
        ({}, {0: ABRT, 1: KILL}, RunFailed, "Rank 1 was killed by SIGKILL"),
        ({}, {0: 1, 1: -signal.SIGSEGV}, RunFailed, "Rank 1 was killed by SIGSEGV.\n  What it printed last is in rank-1.log."),
        ({}, {0: TERM, 1: 7}, RunFailed, "Rank 1 ended with exit code 7 and said nothing.\n  What it printed last is in rank-1"),
        ({}, {1: -40}, RunFailed, "Rank 1 was killed by signal 40."),
        ({0: LOST}, {1: KILL}, RunFailed, "Rank 1 was killed by SIGKILL"),
        ({0: STOPPED}, {1: ABRT}, RunFailed, "Rank 1 was killed by SIGABRT"),
        ({0: LOST}, {1: ABRT}, RunFailed, "Rank 1 was killed by SIGABRT"),
        ({0: OWN}, {1: ABRT}, RunFailed, "its own"),
        ({0: FULL}, {1: ABRT}, MemoryFull, "CUDA out of memory"),
        ({0: USER}, {1: TERM}, UserError, "no such column"),
        ({0: OWN}, {1: KILL}, RunFailed, "Rank 1 was killed by SIGKILL"),
        ({0: LOST, 1: FULL}, {}, MemoryFull, "rank 1: CUDA out of memory"),
        ({0: LOST, 1: STOPPED}, {}, RunFailed, NO_ANSWER),
        ({0: STOPPED, 1: LOST}, {}, Stopped, "SIGTERM"),
        ({0: STOPPED, 1: OWN}, {}, Stopped, "SIGTERM"),
        ({0: OWN, 1: FULL}, {}, RunFailed, "its own"),
        ({0: Ending("done"), 1: LOST}, {}, RunFailed, NO_ANSWER),
    ],
)  # fmt: skip
def test_what_ended_first(found: dict[int, Ending], codes: dict[int, int], kind: type[Exception], said: str) -> None:
    """Seen at one look, or written in the order of the ranks."""
    at = {rank: Ending(**{**vars(ending), "at": float(rank)}) for rank, ending in found.items()}
    why: Any = cause(at, codes)
    assert type(why) is kind
    assert said in (why.signal_name if kind is Stopped else str(why))


def test_nothing_failed() -> None:
    assert cause({0: Ending("done"), 1: Ending("done")}, {1: KILL}) is None, "it was done, whatever ended it after that"


def test_a_rank_that_is_told_to_end_while_it_fails_says_why(tmp_path: Path) -> None:
    own = {"DUMBO_LAUNCH_FOLDER": str(tmp_path), "DUMBO_LAUNCHER": str(os.getpid()), "RANK": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FAILS)],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert endings(tmp_path)[1].kind == "failed"
    assert "the exchange broke" in endings(tmp_path)[1].text
