"""How each rank of a run ended: written by the rank, read by the process that started it.

One file a rank in the run's folder of the node. What ended first is the cause; what the other ranks say afterwards
(a connection closed, a signal from us) is its consequence. Where several are seen at one look, what tells the two apart is how
they ended.
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
from dumbo.outputs.failure import NO_ANSWER

KINDS: dict[str, type[Exception]] = {"user": UserError, "gate": GateFailed, "proof": ProofFailed, "failed": RunFailed}
HARD = [-number for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)]
"""Exit codes of a process that no other rank's end has ended."""


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
        aside.write_text(json.dumps({**vars(self), "at": time.time()}, default=str), encoding="utf-8")
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
    silent = sorted((_place(code), rank, code) for rank, code in exit_codes.items() if rank not in found and code != 0)
    told = [rank for _, rank in sorted((ending.at, rank) for rank, ending in found.items() if ending.kind != "done")]
    own = [rank for rank in told if _is_own(found[rank])]
    if silent and (silent[0][0] == 0 or not own):
        return RunFailed(_died(*silent[0][1:]))
    if not told:
        return None
    # Of a rank that lost another one it is the other that tells the cause, where it failed by itself; a stop that came after
    # that is the launcher's.
    rank = own[0] if own and found[told[0]].kind == "failed" else told[0]
    first = found[rank]
    if first.kind == "stopped":
        return Stopped(first.text, first.code)
    if first.kind == "memory":
        assert first.result is not None
        where = f"rank {rank}: " if len(found) > 1 else ""
        return MemoryFull(where + first.text, **{**first.result, "batch": Batch(**first.result["batch"])})
    several = len(found) > 1 and first.kind == "failed"
    return KINDS[first.kind](f"{first.text}\n  (rank {rank})" if several else first.text)


def _place(code: int) -> int:
    """How likely a silent death is the first one: 0 most. NCCL's watchdog and gloo abort where another rank is lost, and torch's
    launcher ends those that are left by SIGTERM.
    """
    return 0 if code in HARD else 2 if code == -signal.SIGTERM else 1


def _is_own(ending: Ending) -> bool:
    """Whether a rank failed by itself, and not because it lost another one."""
    return ending.kind not in ("done", "stopped") and not (
        ending.kind == "failed" and ending.text.startswith(NO_ANSWER)
    )


def _died(rank: int, code: int) -> str:
    log = f"\n  What it printed last is in rank-{rank}.log."
    if code >= 0:
        return f"Rank {rank} ended with exit code {code} and said nothing.{log}"
    known = {number.value: number.name for number in signal.Signals}
    if code == -signal.SIGKILL:
        return f"Rank {rank} was killed by SIGKILL. The machine may be out of memory."
    return f"Rank {rank} was killed by {known.get(-code, f'signal {-code}')}.{log}"
