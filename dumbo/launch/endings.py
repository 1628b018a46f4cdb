"""How each rank of a run ended: written by the rank, read by the process that started it.

One file a rank in the run's folder of the node. What ended first is the cause; what the other ranks say afterwards
(a connection closed, a signal from us) is its consequence.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dumbo.batch import Batch
from dumbo.errors import GateFailed, MemoryFull, ProofFailed, RunFailed, Stopped, UserError

KINDS: dict[str, type[Exception]] = {"user": UserError, "gate": GateFailed, "proof": ProofFailed, "failed": RunFailed}


@dataclass(frozen=True)
class Ending:
    """How one rank ended.

    Attributes:
        kind: done, stopped, user, gate, proof, memory, failed.
        text: what is to be said; for `stopped` the signal's name.
        code: the exit code.
        at: time.time().
        result: of a rank that is done: what the caller needs; of one whose memory was full: where, and with which batch.
    """

    kind: str
    text: str = ""
    code: int = 0
    at: float = 0.0
    result: Mapping[str, Any] | None = None

    def write(self, folder: Path, rank: int) -> None:
        aside = folder / f".end-{rank}"
        aside.write_text(json.dumps({**vars(self), "at": time.time()}), encoding="utf-8")
        aside.rename(folder / f"end-{rank}.json")


def ending_of(error: BaseException) -> Ending:
    """What a rank writes of the exception that ended it."""
    if isinstance(error, Stopped):
        return Ending("stopped", error.signal_name, error.exit_code)
    if isinstance(error, MemoryFull):
        where = {"step": error.step, "batch": asdict(error.batch), "asked": error.asked, "graphs": error.graphs}
        return Ending("memory", error.text, 1, result=where)
    for kind, cls in KINDS.items():
        if isinstance(error, cls):
            return Ending(kind, str(error), getattr(error, "exit_code", 1))
    return Ending("failed", f"{type(error).__name__}: {error}", 1)


def endings(folder: Path) -> dict[int, Ending]:
    """Rank -> its ending, of those that wrote one."""
    return {
        int(file.stem.removeprefix("end-")): Ending(**json.loads(file.read_text(encoding="utf-8")))
        for file in folder.glob("end-*.json")
    }


def cause(found: Mapping[int, Ending], exit_codes: Mapping[int, int]) -> Exception | None:
    """Why a run of several ranks ended; None when every rank is done.

    Args:
        found: what the ranks wrote.
        exit_codes: of ranks that failed, as the launcher saw them; negative: the signal that killed it.
    """
    silent = {rank: code for rank, code in exit_codes.items() if rank not in found and code != 0}
    if silent:
        # When one is gone, torch's launcher ends the others by SIGTERM, those that hear nothing yet as well.
        rank, code = min(silent.items(), key=lambda died: died[1] == -signal.SIGTERM)
        return RunFailed(_died(rank, code))
    ended = sorted((ending.at, rank) for rank, ending in found.items() if ending.kind != "done")
    if not ended:
        return None
    rank = ended[0][1]
    first = found[rank]
    if first.kind == "stopped":
        return Stopped(first.text, first.code)
    if first.kind == "memory":
        assert first.result is not None
        where = f"rank {rank}: " if len(found) > 1 else ""
        told = {**first.result, "batch": Batch(**first.result["batch"])}
        return MemoryFull(where + first.text, **told)
    several = len(found) > 1 and first.kind == "failed"
    return KINDS[first.kind](f"{first.text}\n  (rank {rank})" if several else first.text)


def _died(rank: int, code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        why = " The machine may be out of memory." if name == "SIGKILL" else ""
        return f"Rank {rank} was killed by {name}.{why}"
    return f"Rank {rank} ended with exit code {code} and said nothing."
