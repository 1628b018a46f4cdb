"""Why a run failed, in the user's words where the cause is known, else the last line of the traceback."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from dumbo.errors import GateFailed, MemoryFull, ProofFailed, RunFailed, Stopped, UserError
from dumbo.outputs.places import short, typed

if TYPE_CHECKING:
    from dumbo.outputs.run_dir import RunDir


LOST = (
    "Timed out waiting", "Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe",
    "No route to host", "Socket Timeout", "collective operation timeout", "remote process exited", "NCCL",
)  # fmt: skip
"""What gloo and NCCL say when they lose another rank."""
NO_ANSWER = "Another rank did not answer"


@contextmanager
def explained(run: RunDir) -> Iterator[None]:
    """What fails inside is logged with its traceback, and raised in the user's words.

    Raises:
        RunFailed: for any failure that is not the user's to mend.
    """
    try:
        yield
    except (Stopped, UserError, GateFailed, ProofFailed):
        raise
    except Exception as error:
        with suppress(OSError):  # a full disk must not hide why the run failed
            run.console.log(traceback.format_exc())
        if isinstance(error, MemoryFull):  # for the process that started this one
            raise
        raise RunFailed(str(error) if isinstance(error, RunFailed) else _why(error, run)) from error


def _why(error: Exception, run: RunDir) -> str:
    """A failure in the user's words, where its cause is known; else its last lines."""
    log = f"The whole traceback is in {short(run.path / run.log_name)}"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full: {error}.\n  Checkpoints written before are intact. Free some space, then go on: {typed('resume', run.path)}"
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"The GPU's memory is full: {str(error).splitlines()[0]}\n  Lower trainer.micro_batch_size or trainer.max_seq_len, "
            f"or add patch=[…,gradient_checkpointing]. {log}"
        )
    if run.ranks > 1 and (lost := next((word for word in LOST if word in str(error)), None)):
        return (
            f"{NO_ANSWER} ({lost}): it is gone, or stuck for longer than launch.timeout.\n"
            f"  Checkpoints are whole, go on: {typed('resume', run.path)}  {log}"
        )
    last = traceback.format_exception_only(error)[-1].strip()
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"The run failed: {last}\n  at {frame.filename}, line {frame.lineno}, in {frame.name}\n  {log}"
