"""How a rank ended is written whatever reaches it meanwhile, and the rank that died first is the one that is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dumbo.errors import RunFailed
from dumbo.launch.endings import cause, endings

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


@pytest.mark.parametrize("codes", [{0: -signal.SIGTERM, 1: -signal.SIGKILL}, {0: -signal.SIGKILL, 1: -signal.SIGTERM}])
def test_the_rank_that_died_first_is_named(codes: dict[int, int]) -> None:
    """Both are seen to be gone at one look: torch's launcher has told the other to end."""
    died = next(rank for rank, code in codes.items() if code == -signal.SIGKILL)
    why = cause({}, codes)
    assert isinstance(why, RunFailed)
    assert str(why) == f"Rank {died} was killed by SIGKILL. The machine may be out of memory."


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
