"""`python -m dumbo.verify.child`: a task of a proof in a fresh process. Started by `apart.py`, never by hand.

frozen config -> the experiment, built as in the process that asks -> the task -> what it found, into a file
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.launch.endings import Ending, ending_of
from dumbo.launch.frozen import frozen_from_environment
from dumbo.launch.rank import die_with
from dumbo.verify.apart import TASK

if TYPE_CHECKING:
    from dumbo.verify.subject import Subject


def tasks() -> dict[str, Callable[..., dict[str, Any]]]:
    """Name -> a function (Subject, folder, details) that returns what is to be handed back."""
    from dumbo.verify.references import compared_task, reference_task
    from dumbo.verify.steps import again_task, interrupted_task, resumed_task

    return {
        "reference": reference_task,
        "compared": compared_task,
        "interrupted": interrupted_task,
        "resumed": resumed_task,
        "again": again_task,
    }


def main() -> int:
    """Runs the task that the environment and the folder describe."""
    die_with(int(os.environ.pop("DUMBO_LAUNCHER")))
    frozen = frozen_from_environment()
    folder = Path(frozen.folder)
    try:
        details = json.loads((folder / TASK).read_text(encoding="utf-8"))
        ending = Ending("done", result=_run(frozen, folder, details.pop("task"), details))
    except BaseException as error:  # nothing goes on: this is what the process that started us says
        with suppress(OSError):  # the log may be on a full disk
            traceback.print_exc()
        ending = ending_of(error)
    ending.write(folder, 0)
    return 0 if ending.kind == "done" else 1


def _run(frozen: Any, folder: Path, task: str, details: dict[str, Any]) -> dict[str, Any]:
    from dumbo.verify.verify import subject_of

    subject: Subject = subject_of(frozen.plugins(), folder)
    return tasks()[task](subject, folder, **details)


if __name__ == "__main__":
    sys.exit(main())
