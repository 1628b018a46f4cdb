"""Commands in processes of their own that start at once: forked from a server that has imported transformers.

    process = Command(folder, "model=tiny", "trainer.max_steps=5")
    process.wait() -> exit code;  process.kill(signal.SIGTERM);  process.said() -> what it printed

They are real processes with their own signals, files and memory; only the seconds of importing are spared.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PRELOAD = [
    "torch",
    "transformers.trainer",
    "peft",
    "accelerate",
    "dumbo.cli",
    "dumbo.trainer.session",
    "processes",
    "sweeps",
]


def _context() -> Any:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["CI"] = "true"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _main(folder: str, words: list[str], environment: dict[str, str], prelude: Callable[[], None] | None) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    out = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    import torch

    torch.set_num_threads(1)
    if prelude is not None:
        prelude()
    from dumbo.cli import main

    try:
        code = main(words)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Command:
    """`python -m dumbo WORDS` in `folder`."""

    def __init__(
        self, folder: Path, *words: str, prelude: Callable[[], None] | None = None, **environment: str
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if name.startswith(("DUMBO", "HF", "OMP", "CI"))}
        arguments = (str(folder), list(words), {**kept, **environment}, prelude)
        self._process = _context().Process(target=_main, args=arguments)
        self._process.start()

    @property
    def alive(self) -> bool:
        return bool(self._process.is_alive())

    def wait(self, timeout: float = 120) -> int:
        """The exit code; negative: the signal that ended it."""
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            raise TimeoutError(f"still running after {timeout} s:\n{self.said()}")
        assert self._process.exitcode is not None
        return int(self._process.exitcode)

    def kill(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def until(self, true: Callable[[], bool], timeout: float = 90) -> None:
        """Waits until something is so; fails when the process ends before."""
        end = time.monotonic() + timeout
        while not true():
            if time.monotonic() > end or not self.alive:
                raise AssertionError(f"it did not come to be:\n{self.said()}")
            time.sleep(0.005)

    def said(self) -> str:
        file = self.folder / "said.txt"
        return file.read_text(errors="replace") if file.is_file() else ""


def rows_of(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, as far as it is written."""
    file = run / "metrics.jsonl"
    found = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def steps_logged(run: Path) -> int:
    return max((row["step"] for row in rows_of(run) if "loss" in row), default=0)


def curve(run: Path) -> list[tuple[Any, ...]]:
    """What must not depend on interruptions: every number of every row but those of time and memory."""
    keys = ("step", "loss", "grad_norm", "lr", "tokens", "eval_loss")
    return [tuple(row.get(key) for key in keys) for row in rows_of(run)]


def facts_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())
