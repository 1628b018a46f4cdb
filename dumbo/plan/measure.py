"""Which micro batch fits, measured: a child process trains on the longest batch (`probe.py`), this one waits for it.

Sizes are tried by bisection, several in one child; when the memory runs out in it, the next child begins afresh. The
experiment goes to the child through its standard input: it may hold secrets, which are written nowhere.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.errors import RunFailed

if TYPE_CHECKING:
    from dumbo.check import Plugins
    from dumbo.prepare.store import PreparedSplits, Split

OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
             "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT")  # fmt: skip
OF_LAUNCHERS = ("TORCHELASTIC_", "ACCELERATE_", "FSDP_", "PMI_", "OMPI_", "MV2_", "DUMBO_LAUNCH", "DUMBO_FROZEN")
"""What would make the child one of several ranks, and wait for the others."""
PATIENCE = 1800.0
"""Seconds for one child."""
LAST_LINES = 15


@dataclass(frozen=True)
class Task:
    """What a child is to measure.

    Attributes:
        plugins, data: the experiment.
        sizes: micro batch sizes, smallest first.
        ranks: of the run.
        limit: bytes that may be used at most; None: what is free, on a CPU without a limit.
        first: the size to begin with; None, or one that is not among them: the middle one.
    """

    plugins: Plugins
    data: PreparedSplits
    sizes: list[int]
    ranks: int
    limit: int | None = None
    first: int | None = None


def bisected(
    sizes: Sequence[int], peak: Callable[[int], int | None], first: int | None = None
) -> tuple[int | None, dict[int, int | None]]:
    """The largest size that has a peak, and the peaks of those that were tried. A larger one is taken to need more.

    Args:
        sizes: smallest first.
        peak: bytes; None: it does not fit.
        first: is tried in any case, where it is among them.
    """
    tried: dict[int, int | None] = {}
    fits, over = -1, len(sizes)
    while over - fits > 1:
        place = (fits + over) // 2 if tried or first not in sizes else sizes.index(first)
        tried[sizes[place]] = found = peak(sizes[place])
        fits, over = (place, over) if found is not None else (fits, place)
    return (sizes[fits] if fits >= 0 else None), tried


def largest_measured(
    plugins: Plugins,
    data: PreparedSplits,
    sizes: list[int],
    ranks: int,
    limit: int | None = None,
    *,
    first: int | None = None,
    instead: str = "trainer.micro_batch_size=NUMBER",
) -> tuple[int | None, dict[int, int | None], int | None]:
    """The largest size that fits (None: none does), size -> bytes at the peak, and the bytes that could be used.

    Args:
        limit: bytes; None: what is free, on a CPU without a limit.
        first: the size that is wanted to be known in any case.
        instead: what to write to go on without measuring.

    Raises:
        RunFailed: a child failed for another reason than memory.
    """
    tried: dict[int, int | None] = {}
    left, known = list(sizes), limit
    while left:
        rows = _child(Task(plugins, _detached(data), left, ranks, limit, first), instead)
        for row in rows:
            tried[row["size"]], known = row["peak"], row["limit"]
        fits = max((size for size, peak in tried.items() if peak is not None), default=0)
        over = min((size for size, peak in tried.items() if peak is None), default=sizes[-1] + 1)
        left = [size for size in sizes if fits < size < over]
    return max((size for size, peak in tried.items() if peak is not None), default=None), tried, known


def _child(task: Task, instead: str) -> list[dict[str, Any]]:
    """One child's sizes and peaks, at least one."""
    try:
        told = pickle.dumps(sys.path) + pickle.dumps(task)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise RunFailed(
            f"Memory is measured in a process of its own, and a plugin cannot be sent there ({error}).\n"
            f"  Write {instead}"
        ) from error
    with tempfile.TemporaryDirectory(prefix="dumbo-probe-") as name:
        folder = Path(name)
        with (folder / "said").open("wb") as said:
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "dumbo.plan.probe", name, str(os.getpid())],
                    input=told,
                    stdout=said,
                    stderr=said,
                    env=child_environment(os.environ),
                    timeout=PATIENCE,
                    check=False,
                )
                code: int | str = done.returncode
            except subprocess.TimeoutExpired:
                code = f"no answer for {PATIENCE:.0f} s"
        file = folder / "peaks.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        if code != 0 or not rows:
            last = "\n  ".join((folder / "said").read_text(errors="replace").splitlines()[-LAST_LINES:])
            raise RunFailed(
                f"Measuring the memory failed (exit code {code}):\n  {last}\n  Write {instead} to go on without it"
            )
        return rows


def child_environment(own: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what makes it one of several ranks; of several GPUs the first."""
    kept = {name: value for name, value in own.items() if name not in OF_A_RANK and not name.startswith(OF_LAUNCHERS)}
    return kept | {"CUDA_VISIBLE_DEVICES": own.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}


def _detached(data: PreparedSplits) -> PreparedSplits:
    """The data without what this process has mapped of it."""
    return replace(data, train=_fresh(data.train), eval=_fresh(data.eval) if data.eval is not None else None)


def _fresh(split: Split) -> Split:
    from dumbo.prepare.store import Store

    return replace(split, store=Store(split.store.folder), documents=split.documents.copy())
