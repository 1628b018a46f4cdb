"""`python -m dumbo.launch.rank`: one rank of a run. Started by `ranks.py`, never by hand.

frozen config -> join the others -> agree on its hash -> the experiment -> how it ended, into a file

Exit code 0 when done or stopped, else 1: what is to be said stands in the file.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dumbo.launch.endings import Ending, ending_of
from dumbo.launch.frozen import Frozen, frozen_from_environment
from dumbo.trainer.signals import WARNINGS, interruptible

PR_SET_PDEATHSIG = 1


def main() -> int:
    """Runs the rank that the environment describes."""
    folder, rank = Path(os.environ["DUMBO_LAUNCH_FOLDER"]), int(os.environ["RANK"])
    die_with(int(os.environ["DUMBO_LAUNCHER"]))
    for number in WARNINGS:  # the launcher tells it, once this rank listens; told twice, the second time may come last
        signal.signal(number, signal.SIG_IGN)
    frozen = frozen_from_environment()
    _speak_into(Path(frozen.folder) / f"rank-{rank}.log", also_out=rank != 0)
    for number in (signal.SIGINT, signal.SIGTERM):  # after the block below: how it ended must be written by then
        signal.signal(number, signal.SIG_IGN)
    try:
        with interruptible():
            _write_pid(folder, rank)
            ending = _run(frozen, folder)
    except BaseException as error:  # nothing goes on: this is what the process that started us says
        with suppress(OSError):  # the log may be on a full disk
            traceback.print_exc()
        ending = ending_of(error)
    ending.write(folder, rank)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if ending.kind in ("done", "stopped"):
        return 0
    os._exit(1)  # at once: the others may never answer the goodbye of the process group


def _run(frozen: Frozen, folder: Path) -> Ending:
    from dumbo.launch.many import ATTACHMENT
    from dumbo.launch.world import join
    from dumbo.outputs.claim import attach
    from dumbo.outputs.failure import explained
    from dumbo.train import tracked

    plugins = frozen.plugins()
    world = join(plugins.launch.many.timeout)
    world.agree("config", frozen.hash)
    run = attach(json.loads((Path(frozen.folder) / ATTACHMENT).read_text()), world)
    run.to_track = (list(plugins.trackers.values()), run.to_track[1])
    (folder / f"ready-{world.rank}").touch()
    with explained(run):
        metrics = tracked(plugins, run)
    return Ending("done", result=_result(metrics, run.samples) if world.main else None)


def _result(metrics: dict[str, Any], samples: Any) -> dict[str, Any]:
    return {"metrics": metrics, "samples": [(asdict(question), *texts) for question, *texts in samples]}


def _write_pid(folder: Path, rank: int) -> None:
    aside = folder / f".pid-{rank}"
    aside.write_text(str(os.getpid()))
    aside.rename(folder / f"pid-{rank}")


def die_with(launcher: int) -> None:
    """The system kills this process when the one that launched it is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:
        os._exit(1)


def _speak_into(file: Path, *, also_out: bool) -> None:
    """What libraries print goes into the rank's log; the terminal is rank 0's panel alone."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 2)
    if also_out:
        os.dup2(handle, 1)
    os.close(handle)


if __name__ == "__main__":
    sys.exit(main())
