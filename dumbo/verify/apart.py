"""Work for a proof in a process of its own, in which nothing has happened yet (`child.py` is what runs there).

The process gets the frozen config as ranks do, in its environment, without what makes a process one of several: it would
wait for the others. It dies with this one. What it finds comes back as JSON and, where it is large, as safetensors in a
folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.errors import RunFailed
from dumbo.launch.endings import KINDS, endings
from dumbo.launch.frozen import freeze
from dumbo.verify.proof import DoesNotApplyError

if TYPE_CHECKING:
    from dumbo.verify.subject import Subject

RANKS = (
    "RANK",
    "WORLD_SIZE",
    "MASTER_",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_",
    "ROLE_",
    "NODE_RANK",
    "TORCHELASTIC_",
)
"""How the names begin by which a process learns that it is one of several."""
FOREIGN = ("ACCELERATE_", "FSDP_")
"""A user's own accelerate configuration."""
TASK = "task.json"
LINES = 200
"""Of what a process said, so many are kept where it fails."""
TIMEOUT = 3600
"""Seconds after which a process that says nothing is given up."""


def apart(subject: Subject, name: str, task: str, **details: Any) -> dict[str, Any]:
    """Runs a task of `child.py` in a fresh process, and waits for it.

    Args:
        name: of the folder below the subject's scratch folder that the task gets; made if it is not there.
        task: a name of `child.TASKS`.
        details: arguments of the task; JSON.

    Returns:
        what the task returns.

    Raises:
        DoesNotApplyError: there is no composed config to give to it.
        UserError, ProofFailed, RunFailed: what ended the process.
    """
    import torch

    if subject.composed is None or subject.command is None:
        raise DoesNotApplyError("it takes a process of its own, and there is no composed config to start one with")
    folder = subject.scratch / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TASK).write_text(json.dumps({"task": task, **details}), encoding="utf-8")
    frozen = freeze(subject.composed, subject.command.config_dirs, folder)
    environment = {key: value for key, value in os.environ.items() if not key.startswith((*RANKS, *FOREIGN))}
    environment |= frozen.to_environment()
    environment |= {"DUMBO_LAUNCHER": str(os.getpid()), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    said = folder / "said.txt"
    with said.open("ab") as file:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "dumbo.verify.child"],
                env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=TIMEOUT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            raise RunFailed(f"A process of verify ({name}) was not done after {TIMEOUT} s, and was ended.") from late
    return _answer(folder, done.returncode, said)


def _answer(folder: Path, code: int, said: Path) -> dict[str, Any]:
    ending = endings(folder).get(0)
    (folder / "end-0.json").unlink(missing_ok=True)
    lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if ending is None:
        last = lines[-5:]
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise RunFailed("\n  ".join([f"A process of verify ({folder.name}) {how} and said:", *last]))
    if ending.kind != "done":  # memory, stopped: this run has no use for what is said beside them
        error = KINDS.get(ending.kind, RunFailed)(f"{ending.text}\n  (in a process of its own: {folder.name})")
        error.add_note("\n".join(["What the process said:", *lines[-LINES:]]))  # with the traceback, into verify.log
        raise error
    return dict(ending.result or {})
