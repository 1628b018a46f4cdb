"""A run's folder: claimed by one live process, and every file in it either whole or absent.

run.json        what it is and how it went; rewritten whole at every change
metrics.jsonl   a line per logged step; cut back to the checkpoint on resume
.lock           held by the process that runs; the system lets go of it when the process dies
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from dumbo.errors import UserError
from dumbo.launch.world import World
from dumbo.outputs.console import Console
from dumbo.outputs.numbers import finite
from dumbo.outputs.runs import read_facts

if TYPE_CHECKING:
    from dumbo.outputs.samples import Question
    from dumbo.verify.unpatched import Unpatched

SECONDS_TO_CLAIM = 1.0
"""Whoever looks whether a folder is claimed (a report, a sweep's watcher) has its lock for a moment."""


@dataclass
class RunDir:
    """One run.

    Attributes:
        path: its folder, absolute.
        console: where it speaks.
        started: when this process began (time.time()).
        resuming: whether it goes on from an earlier process.
        world: the processes of the run; only rank 0 writes into the folder.
        claimed: whether this process holds the folder; on several machines only one does.
        wrapper: what the launch plugin wants around the model: none, DDP or FSDP2.
        fsdp: options of FSDP2, by transformers' names.
        verify_quick: whether the quick proofs are asked for.
        attn_implementation: what the model plugin asks for.
        to_write: files that say what was typed; on resuming they are written once it can go on with them.
        to_hash: the config's hash, likewise.
        earlier: what run.json said of a run that is gone on with.
        to_track: tracker plugins to start (rank 0 of ranks that were started here takes its own), and the config they are told.
        trackers: tracker plugins, started.
        mute: those of them that could not log.
        facts: run.json.
        proofs: what was proven, in words, for the start panel.
        before: the model before any patch, for the proofs.
        proof_seconds: what the quick proofs have taken.
        samples: (question, answer before, answer after), for the end.
    """

    path: Path
    console: Console
    started: float
    resuming: bool = False
    world: World = field(default_factory=World)
    claimed: bool = True
    wrapper: str = "none"
    fsdp: dict[str, Any] = field(default_factory=dict)
    verify_quick: bool = True
    attn_implementation: str = "auto"
    to_write: dict[str, str] = field(default_factory=dict)
    to_hash: str | None = None
    earlier: dict[str, Any] | None = None
    to_track: tuple[list[Any], dict[str, Any]] = field(default_factory=lambda: ([], {}))
    trackers: list[Any] = field(default_factory=list)
    mute: list[Any] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    proofs: list[str] = field(default_factory=list)
    before: Unpatched | None = None
    proof_seconds: float = 0.0
    samples: list[tuple[Question, str, str]] = field(default_factory=list)
    _lock: TextIO | None = None

    @property
    def ranks(self) -> int:
        return self.world.size

    @property
    def wrapped_in(self) -> str:
        """What has to be around the model: none, DDP or FSDP2."""
        return self.wrapper if self.world.group is not None else "none"

    @property
    def log_name(self) -> str:
        """The file of the folder that gets this process's words."""
        return "dumbo.log" if self.world.main else f"rank-{self.world.rank}.log"

    @property
    def writes(self) -> bool:
        """Whether this process writes into the folder."""
        return self.world.main and self.claimed

    # ---- the claim --------------------------------------------------------------------------------------------

    def claim(self) -> None:
        """Makes the folder and takes its lock.

        Raises:
            UserError: it cannot be made or written, or a live process has it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a")
        except OSError as error:
            raise UserError(
                f"run_dir: the folder {self.path} cannot be written ({error.strerror}).\n  Write run_dir=FOLDER for another one."
            ) from error
        end = time.monotonic() + SECONDS_TO_CLAIM
        while not self._locked():
            if time.monotonic() > end:
                raise UserError(
                    f"run_dir: another run is using {self.path} at this moment.\n  Wait for it, or write another run_dir=FOLDER."
                )
            time.sleep(0.02)

    def _locked(self) -> bool:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise UserError(
                f"run_dir: {self.path} cannot be locked ({error.strerror}), and two runs in it would spoil one another.\n"
                "  Write run_dir=FOLDER on a file system with locks (flock)."
            ) from error
        return True

    def release(self) -> None:
        """Lets go of the folder and closes the log."""
        self.console.close()
        if self._lock is not None:
            self._lock.close()

    # ---- other processes --------------------------------------------------------------------------------------

    def attachment(self) -> dict[str, Any]:
        """What another process of the same run needs to know of it."""
        shared = (
            "started",
            "resuming",
            "wrapper",
            "fsdp",
            "verify_quick",
            "attn_implementation",
            "to_write",
            "to_hash",
        )
        return {"path": str(self.path), "tracked": self.to_track[1], **{name: getattr(self, name) for name in shared}}

    @classmethod
    def attached(cls, told: Mapping[str, Any], world: World, console: Console) -> RunDir:
        """The run as one of its ranks has it: the folder is claimed by the process that started it."""
        path = Path(told["path"])
        known = {**told, "path": path, "to_track": ([], told["tracked"])}
        del known["tracked"]
        return cls(**known, console=console, world=world, facts=read_facts(path))

    def take_result(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """What rank 0 hands back; returns the metrics."""
        from dumbo.outputs.samples import Question

        for question, before, after in result.get("samples", ()):
            lists: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in question.items()}
            self.samples.append((Question(**lists), before, after))
        return dict(result.get("metrics", {}))

    def start_again(self) -> None:
        """What this process learnt on the way is forgotten: the run goes on from its newest checkpoint, if there is one."""
        self.resuming = True
        self.proofs, self.samples, self.before, self.proof_seconds = [], [], None, 0.0
        self.update(patches={})

    def reload(self) -> None:
        """Takes up what another process wrote into run.json."""
        self.facts = read_facts(self.path)

    # ---- files ------------------------------------------------------------------------------------------------

    def write(self, name: str, text: str) -> None:
        """A file of the folder, whole or as it was."""
        if not self.writes:
            return
        aside = self.path / f".{name}.{os.getpid()}"
        aside.write_text(text, encoding="utf-8")
        aside.replace(self.path / name)

    def write_down(self) -> None:
        """What was typed, into the folder."""
        for name, text in self.to_write.items():
            self.write(name, text)
        self.to_write = {}
        if self.to_hash is not None:
            self.facts["config_hash"] = self.to_hash
        if self.resuming:  # a new run's run.json has more to say, and is written next
            self.update()

    def refused(self) -> bool:
        """Whether a run that was to be gone on with in another way has ended before it was; then it is as it was."""
        typed = self.to_write.get("config.yaml")
        if self.earlier is None or typed is None or (self.path / "config.yaml").read_text(encoding="utf-8") == typed:
            return False
        self.facts = {}
        with suppress(OSError):  # a full disk must not hide why
            self.update(**self.earlier)
        return True

    def update(self, **facts: Any) -> None:
        """Changes keys of run.json."""
        self.facts.update(facts)
        self.write("run.json", json.dumps(finite(self.facts), indent=2, ensure_ascii=False, default=str) + "\n")

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Appends a row to metrics.jsonl. Numbers that are not finite become null, and are named under `not_finite`."""
        if not self.writes:
            return
        strange = [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        line = {**finite(dict(row)), **({"not_finite": strange} if strange else {})}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The rows of metrics.jsonl; a line cut by a kill ends them."""
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return

    def cut_metrics(self, step: int) -> None:
        """Drops rows past a step: they will be written again."""
        kept = [row for row in self.metrics() if row["step"] <= step]
        self.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))

    @contextmanager
    def proving(self) -> Iterator[None]:
        """Times what the quick proofs take at the start of a run."""
        began = time.perf_counter()
        yield
        self.proof_seconds += time.perf_counter() - began

    # ---- patches ----------------------------------------------------------------------------------------------

    def left_out(self, name: str, reason: str | None) -> bool:
        """Says and records that a patch is left out, when there is a reason to."""
        if reason is None:
            return False
        self._patch(name, f"left out: {reason}")
        return True

    def note_patch(self, name: str, evidence: str) -> None:
        """What shows that a patch took."""
        self._patch(name, evidence, recorded=f"applied: {evidence}")

    def _patch(self, name: str, text: str, recorded: str | None = None) -> None:
        noted = {**self.facts.get("patches", {}), name: recorded or text}
        first = not self.facts.get("patches")
        self.console.row("patches" if first else "", f"{name:<8}{text}" if len(name) < 8 else f"{name}  {text}")
        self.update(patches=noted)
