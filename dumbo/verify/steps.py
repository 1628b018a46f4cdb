"""A few steps of training as `train` makes them, on a few short documents: once without a stop, and once stopped and
gone on with, each part in a process of its own. `determinism.py` and `resumed.py` look at what they give.

    here       2k steps
    process 1  k steps, then SIGUSR1: a checkpoint is saved, the run is left     (the folder INTERRUPTED)
    process 2  goes on from the checkpoint, to 2k steps                          (the same folder)

and, where the machine does not compute the same bits twice (`noise.py`),

    process 3  2k steps once more                                                (the folder AGAIN)
    here       2k steps with another seed                                        (the folder OTHER)

A run's result is its rows of metrics.jsonl and digests of what trains: as its first step begins, after k steps, at the end.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback

from dumbo.errors import Stopped, UserError
from dumbo.outputs.console import Console
from dumbo.outputs.run_dir import RunDir
from dumbo.trainer.saving import bytes_to_save
from dumbo.verify.apart import apart
from dumbo.verify.digests import Moments, digest
from dumbo.verify.proof import DoesNotApplyError

if TYPE_CHECKING:
    from dumbo.batch import Batch
    from dumbo.prepare.store import PreparedSplits
    from dumbo.trainer.session import Session
    from dumbo.verify.subject import Subject

HALF = 2
"""k: steps before the stop."""
DOCUMENTS = 12
STRAIGHT, INTERRUPTED, AGAIN, OTHER = "straight", "interrupted", "again", "other"
PLAN = {
    "max_steps": 2 * HALF, "global_batch_size": 2, "micro_batch_size": 1, "log_every": 1, "eval_every": None, "save_every": None,
    "eval_at_start": False, "load_best_at_end": False, "num_samples": 0, "num_answers": 0, "max_time": None,
}  # fmt: skip
"""What is set in the trainer plugin; all else (schedule, optimizer, precision, packing, …) is as chosen."""

Row = dict[str, Any]


def straight(subject: Subject) -> dict[str, Any]:
    """The run without a stop, in this process; made once."""
    if STRAIGHT not in subject.shared:
        subject.release()
        subject.shared[STRAIGHT] = _trained(subject, subject.scratch / STRAIGHT)
    found: dict[str, Any] = subject.shared[STRAIGHT]
    return found


def first_half(subject: Subject) -> dict[str, Any]:
    """The run that is stopped after k steps, from a process of its own; made once."""
    if INTERRUPTED not in subject.shared:
        straight(subject)
        subject.shared[INTERRUPTED] = apart(subject, INTERRUPTED, "interrupted")
    found: dict[str, Any] = subject.shared[INTERRUPTED]
    return found


def second_half(subject: Subject) -> dict[str, Any]:
    """Goes on with it in another process; rows of the steps after the stop."""
    first_half(subject)
    found = apart(subject, INTERRUPTED, "resumed")
    return {**found, "rows": [row for row in found["rows"] if row["step"] > HALF]}


def again(subject: Subject) -> dict[str, Any]:
    """The run without a stop once more, in a process of its own; made once."""
    if AGAIN not in subject.shared:
        subject.shared[AGAIN] = apart(subject, AGAIN, "again")
    found: dict[str, Any] = subject.shared[AGAIN]
    return found


def other_seed(subject: Subject) -> dict[str, Any]:
    """The run with another seed, in this process: what is random in it is another one."""
    subject.release()
    seed = int(getattr(subject.plugins.trainer, "seed", 0)) + 1
    trainer = replace(subject.plugins.trainer, seed=seed)
    plugins, subject.plugins = subject.plugins, replace(subject.plugins, trainer=trainer)
    try:
        return _trained(subject, subject.scratch / OTHER)
    finally:
        subject.plugins = plugins


def interrupted_task(subject: Subject, folder: Path) -> dict[str, Any]:
    """In a fresh process: k steps, then the signal that SLURM sends before it takes a machine away."""
    run = _run(subject, folder / "run")
    session = _session(subject, run)
    session.callbacks = [_StopAfter(HALF)]
    watch = _watched(session)
    try:
        session.train()
    except Stopped:
        return {"rows": _rows(run), "half": watch().half}
    raise AssertionError("a signal did not stop the run")


def resumed_task(subject: Subject, folder: Path) -> dict[str, Any]:
    """In a fresh process: from the checkpoint to the end."""
    return _trained(subject, folder, resuming=True)


def again_task(subject: Subject, folder: Path) -> dict[str, Any]:
    """In a fresh process: all steps, without a stop."""
    return _trained(subject, folder)


class _StopAfter(TrainerCallback):
    """Asks this process to stop while step `last` computes, so that it is the last one. A row would come too late for that:
    on a GPU it is written one step late.
    """

    def __init__(self, last: int) -> None:
        self.last = last

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.last - 1:
            os.kill(os.getpid(), signal.SIGUSR1)


def _trained(subject: Subject, folder: Path, *, resuming: bool = False) -> dict[str, Any]:
    run = _run(subject, folder / "run", resuming=resuming)
    session = _session(subject, run)
    watch = _watched(session, resuming=resuming)
    session.train()
    trainer: Any = session.trainer
    found = {"rows": _rows(run), "first": watch().first, "half": watch().half, "end": digest(trainer)}
    shutil.rmtree(run.path, ignore_errors=True)
    return found


def _watched(session: Session, *, resuming: bool = False) -> Callable[[], Moments]:
    """Has digests taken on the way (the first of a run that is gone on with, else that after k steps), and returns what
    gives them.
    """
    watches: list[Moments] = []
    make = session.equipped

    def equipped(batch: Batch) -> Any:
        trainer = make(batch)
        watches.append(Moments(trainer, first=resuming, half=None if resuming else HALF))
        trainer.add_callback(watches[-1])
        return trainer

    session.equipped = equipped  # type: ignore[method-assign]
    return lambda: watches[-1]


def _run(subject: Subject, path: Path, *, resuming: bool = False) -> RunDir:
    path.mkdir(parents=True, exist_ok=True)
    return RunDir(
        path=path,
        console=Console(io.StringIO()),
        started=time.time(),
        resuming=resuming,
        verify_quick=False,
        attn_implementation=subject.run.attn_implementation,
    )


def _session(subject: Subject, run: RunDir) -> Session:
    """As the trainer plugin makes it, for these few steps."""
    plugin = subject.plugins.trainer
    names = {option.name for option in fields(plugin)}
    if not hasattr(plugin, "session") or not names >= set(PLAN):
        raise DoesNotApplyError(f"{type(plugin).__name__} cannot be asked to make a few steps")
    try:
        plugin = replace(plugin, **PLAN, packing=subject.packed and subject.not_isolated is None)
        model = subject.fresh_model()
        _require_room(subject.scratch, bytes_to_save(model))
        session: Session = plugin.session(model, subject.tokenizer, _data(subject), run)
    except UserError as error:
        raise DoesNotApplyError(f"these few steps cannot be made: {error}") from error
    return session


def _data(subject: Subject) -> PreparedSplits:
    """The shortest documents that are trained on, in packs of about two."""
    store = subject.data.train.store
    trained = [int(document) for document in subject.data.train.documents if store.labelled[document]]
    chosen = sorted(trained, key=lambda document: (int(store.lengths[document]), document))[:DOCUMENTS]
    if len(chosen) < 2:
        raise DoesNotApplyError(f"it takes 2 documents with trained tokens, and the sample has {len(chosen)}")
    longest = int(store.lengths[np.array(chosen)].max())
    return replace(subject.only(sorted(chosen)), max_seq_len=min(subject.data.max_seq_len, 2 * longest))


def _require_room(folder: Path, needed: float) -> None:
    free = shutil.disk_usage(folder).free
    if 3 * needed > free:
        raise DoesNotApplyError(
            f"checkpoints take {3 * needed / 2**30:.1f} GiB in {folder.parent}, where {free / 2**30:.1f} GiB are free (TMPDIR=FOLDER)"
        )


def _rows(run: RunDir) -> list[Row]:
    keys = ("step", "loss", "grad_norm", "lr", "tokens")
    return [{key: row.get(key) for key in keys} for row in run.metrics() if "loss" in row]
