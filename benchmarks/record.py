"""What every benchmark shares: turns and medians, commands in processes of their own, and the file with the results.

A result says on what it was measured: hardware, versions, commit, and how busy the machine was before and after.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dumbo.outputs.surroundings import git_state, hardware, versions

RESULTS = Path(__file__).resolve().parent / "results"
MEGA = 1 << 20


@dataclass
class Record:
    """One benchmark's results, on their way into a file.

    Args:
        name: of the file in benchmarks/results/, without its ending.
        what: what was measured, in a sentence.
        folder: another folder for the file (smoke tests).
        packages: whose versions matter besides dumbo's own.
    """

    name: str
    what: str
    folder: Path = RESULTS
    packages: Sequence[str] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.time)
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])

    def write(self) -> Path:
        """Writes the file anew and returns it."""
        own = versions()
        for package in self.packages:
            try:
                own[package] = version(package)
            except PackageNotFoundError:
                continue
        whole = {
            "what": self.what,
            "command": " ".join(["python -m", _module(), *map(_shown, sys.argv[1:])]),
            "measured": time.strftime("%Y-%m-%d", time.gmtime(self.began)),
            "seconds": round(time.time() - self.began, 1),
            "load_before_and_after": [round(self.load_before, 2), round(os.getloadavg()[0], 2)],
            "hardware": hardware(),
            "versions": own,
            **commit(),
            **self.facts,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{self.name}.json"
        file.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
        return file


def commit() -> dict[str, Any]:
    """What is measured: {"git": …}; of a copy without its history what GIT_COMMIT says."""
    named = os.environ.get("GIT_COMMIT")
    return {"git": git_state() or ({"commit": named, "changed": None} if named else None)}


def nothing_held() -> None:
    """Before a case in a process that had others: what they left on the GPU is free, and the peak counts anew."""
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def nothing_saved() -> None:
    """From here on runs of this process write no checkpoint and no model: gigabytes, which take longer than the steps."""
    from dumbo.trainer import session
    from dumbo.trainer.checkpoint import Checkpoints

    Checkpoints.save = lambda self, step, *others: self.path(step)  # type: ignore[method-assign,assignment]
    assert hasattr(session, "save_model")
    session.save_model = lambda run, *others: (run.path / "model").mkdir(exist_ok=True)


def _shown(word: str) -> str:
    """A folder of this machine says nothing elsewhere."""
    return f"FOLDER/{Path(word).name}" if Path(word).is_absolute() else word


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else "benchmarks"


def in_turn(measures: Mapping[str, Callable[[], dict[str, Any]]], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Each measure once, then each once again, …: what changes on the machine changes for all of them."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in measures}
    for number in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure())
            print(f"  round {number + 1} of {rounds}  {name:<18} {shown(found[name][-1])}", flush=True)
    return found


def middle(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """The median of one number over rounds."""
    return statistics.median(float(row[key]) for row in rows)


def shown(row: Mapping[str, Any]) -> str:
    """A row's numbers on one line."""
    return "   ".join(f"{key} {value:,.4g}" for key, value in row.items() if isinstance(value, int | float))


def child(module: str, *words: object, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runs `python -m MODULE WORDS` in a process of its own; the last line it prints is JSON.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def on_cores(cores: int | None) -> None:
    """Keeps this process, and those it starts, on so many cores."""
    if cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def cores_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
