"""A sweep's folder: its name, its lock, what the sweep is, and whether what is typed now is the same sweep.

sweep.json     what was typed, the swept keys, launcher, metric, when and with which versions it began
base.yaml      the config of the words without a sweep (secrets masked): what a changed base is compared with
.lock          held by the process that runs the sweep, and by its jobs on this machine; the system lets go of it when they die
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from dumbo.errors import UserError
from dumbo.hydra_node import key_of
from dumbo.outputs.config_hash import config_hash, differences
from dumbo.outputs.places import short, typed
from dumbo.outputs.whole_file import write_whole

FACTS, BASE, LOCK = "sweep.json", "base.yaml", ".lock"
HOME = Path("multirun_outputs")
LONGEST_NAME = 60
SECONDS_TO_TAKE = 2.0
"""Whoever looks whether a lock is held has it for a moment."""


def default_folder(
    fixed: Sequence[str], swept: Sequence[str], file: Path | None, config_dirs: Sequence[Path] = ()
) -> Path:
    """Where a sweep lies when `sweep_dir` is not typed: equal for the same command, also with more values for a swept key.

    Args:
        fixed: words without a sweep, as typed; those that say how jobs are started or retried do not count.
        swept: the swept keys.
        file: an experiment's YAML file.
    """
    counting = sorted(word for word in fixed if is_of_the_jobs(word))
    told = json.dumps([counting, sorted(swept), str(file or ""), [str(folder) for folder in config_dirs]])
    last = [re.sub(r"[^\w=.+-]", "_", key.rpartition(".")[2], flags=re.ASCII) for key in swept]
    last = last or [word.rpartition("=")[2] for word in fixed if word.startswith("+experiment=")]
    name = "-".join(last)[:LONGEST_NAME].strip("-") or "sweep"
    return HOME / f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def is_of_the_jobs(word: str) -> bool:
    """Whether an override says what the jobs are, rather than where they lie and how they are started."""
    return not key_of(word).startswith(("hydra/launcher", "hydra.launcher", "hydra.job", "sweep_dir", "sweep."))


# ---- what the sweep is ----------------------------------------------------------------------------------------------


def read_sweep(folder: Path) -> dict[str, Any]:
    """sweep.json of a folder; empty when there is none.

    Raises:
        UserError: it is not what a sweep writes.
    """
    file = folder / FACTS
    if not file.is_file():
        return {}
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not what a sweep writes ({error}).\n  Write another sweep_dir=FOLDER.") from error
    if not isinstance(facts, dict):
        raise UserError(f"{file} is not what a sweep writes (no JSON object).\n  Write another sweep_dir=FOLDER.")
    return facts


def require_sweep(folder: Path) -> dict[str, Any]:
    """sweep.json of a folder.

    Raises:
        UserError: the folder is no sweep's.
    """
    facts = read_sweep(folder)
    if not facts:
        known = sorted(str(path.parent) for path in HOME.glob(f"*/{FACTS}"))[-3:]
        seen = f"\n  Sweeps here: {', '.join(known)}" if known else ""
        raise UserError(f"'{short(folder)}' is not a sweep's folder (there is no {FACTS} in it).{seen}")
    return facts


def refuse_a_run(folder: Path) -> None:
    """A sweep in a run's folder would be taken for that run.

    Raises:
        UserError: it is one.
    """
    if (folder / "run.json").is_file():
        raise UserError(f"sweep_dir: {short(folder)} is a run's folder.\n  Write another sweep_dir=FOLDER.")


def write_sweep(folder: Path, facts: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """Both files, each whole or as it was; base.yaml first, since sweep.json says that the sweep is there."""
    write_whole(folder / BASE, yaml.safe_dump(dict(base), sort_keys=False, allow_unicode=True))
    write_facts(folder, {**facts, "base_hash": config_hash(base)})


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """sweep.json alone."""
    write_whole(folder / FACTS, json.dumps(dict(facts), indent=2, ensure_ascii=False) + "\n")


def base_differences(folder: Path, base: Mapping[str, Any]) -> list[str]:
    """`trainer.lr: 1e-4 -> 3e-4`, for every key of the base that counts and is not as when the sweep began."""
    file = folder / BASE
    if not file.is_file():
        return []
    before = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(before, dict):
        raise UserError(f"{file} is not what a sweep writes.\n  Write another sweep_dir=FOLDER.")
    return differences(before, base)


# ---- the lock -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holder:
    """The process that runs a sweep, as .lock names it.

    Args:
        pid: its number.
        host: the machine's name.
        born: when the process started, in the kernel's ticks: a number is given out again, a moment is not.
    """

    pid: int
    host: str
    born: int | None

    @classmethod
    def me(cls) -> Holder:
        return cls(os.getpid(), platform.node(), _born(os.getpid()))

    @property
    def here(self) -> bool:
        return self.host == platform.node()

    @property
    def lives(self) -> bool:
        """Whether it runs; True for one of another machine, which nobody can know from here."""
        if not self.here:
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return self.born is None or _born(self.pid) in (None, self.born)

    def ask_to_end(self) -> None:
        """As Ctrl-C there does.

        Raises:
            UserError: it runs on another machine, or is another user's.
        """
        if not self.here:
            raise UserError(f"sweep cancel: process {self.pid} on {self.host} runs it.\n  Write the same there.")
        try:
            os.kill(self.pid, signal.SIGINT)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise UserError(
                f"sweep cancel: process {self.pid} is another user's.\n  Who started it can write the same."
            ) from error


def _born(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if stat[0] == "Z" else int(stat[19])  # a process that is over, and that its parent has not noticed


def holder_of(folder: Path) -> Holder | None:
    """Who last took a sweep's lock; None: nobody, or it cannot be read."""
    with suppress(OSError, ValueError, TypeError):
        return Holder(**json.loads((folder / LOCK).read_text(encoding="utf-8")))
    return None


def is_locked(folder: Path) -> bool:
    """Whether a sweep, or a job that it left behind, lives."""
    try:
        with (folder / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


class SweepLock:
    """The lock of a sweep's folder: two live sweeps never share one.

    Jobs of a local sweep inherit it (`fileno`). So a sweep that takes it over from a killed one knows that no job of that one
    is alive any more.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: TextIO | None = None

    def take(self, waiting: Callable[[str], None]) -> None:
        """Takes it, after the jobs that a killed sweep left behind have ended.

        Args:
            waiting: told once, in words, when there is something to wait for.

        Raises:
            UserError: a live sweep has it, it is a run's, or it cannot be written.
        """
        refuse_a_run(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"sweep_dir: the folder {self.folder} cannot be written ({error.strerror}).\n  Write sweep_dir=FOLDER for another one."
            ) from error
        began, said = time.monotonic(), False
        while not self._taken():
            holder = holder_of(self.folder)
            tried = time.monotonic() - began > SECONDS_TO_TAKE
            if tried and (holder is None or holder.lives):
                self.release()
                raise UserError(_in_use(self.folder, holder))
            if tried and not said:
                waiting("jobs of a sweep that was killed are saving what they have")
                said = True
            time.sleep(0.05)
        self._file.truncate(0)
        self._file.write(json.dumps(vars(Holder.me())))
        self._file.flush()

    def _taken(self) -> bool:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # some clusters' file systems have none
            self.release()
            raise UserError(
                f"sweep_dir: {self.folder} cannot be locked ({error.strerror}), and two sweeps in it would spoil one another.\n"
                "  Write sweep_dir=FOLDER on a file system with locks (flock)."
            ) from error
        return True

    def fileno(self) -> int:
        assert self._file is not None
        return self._file.fileno()

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _in_use(folder: Path, holder: Holder | None) -> str:
    who = "another sweep" if holder is None else f"process {holder.pid}" + ("" if holder.here else f" on {holder.host}")
    return (
        f"sweep_dir: {who} is running the sweep in {folder} at this moment.\n"
        f"  Watch it: dumbo sweep status {short(folder)}   end it: dumbo sweep cancel {short(folder)}\n"
        f"  or write another one: {typed('sweep_dir', folder.with_name(folder.name + '-2'))}"
    )
