"""What runs in a SLURM job: one task a node, which runs `python -m dumbo train …` and sees to what comes after it.

    the run is done, or failed          -> this job ends with its exit code
    SIGUSR2 (time limit, preemption)    -> the run saves, status preempted -> this job is put back into the queue
    SIGTERM (preemption, scancel)       -> the run saves -> back into the queue, unless it was cancelled

A job that is put back has the same number and folder, and goes on from its checkpoint (resume=auto). submitit's own
handler of SIGUSR2 would leave at once, and it ignores SIGTERM: both are taken from it. Run by submitit's local executor,
the same holds but for preemption.

Source: https://slurm.schedmd.com/sbatch.html (--signal, --requeue), https://github.com/facebookincubator/submitit
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from dumbo.outputs.places import now
from dumbo.outputs.runs import facts_if_whole, is_claimed
from dumbo.slurm.note import Note
from dumbo.slurm.place import Place
from dumbo.sweep.job import PARENT_DEATH_SIGNAL
from dumbo.trainer.signals import WARNINGS

LEFT_OVER = 600.0
"""Seconds that a job waits for another process to let go of its folder: what a node that was lost still runs."""
LAST_WORDS = 20.0
"""Seconds that another node has to write how the run ended."""
PATIENCE = 1
"""So many time limits in a row may end a job no step further."""
EARLY = 90
"""SLURM sends its warning up to 60 seconds before it was asked to."""


@dataclass(frozen=True)
class Task:
    """One job.

    Attributes:
        words: what follows `python -m dumbo`.
        run_dir: the run's folder.
        log: the file that gets what it prints.
        note: the file that `Note` goes into.
        time_limit: seconds of one start, as SLURM was asked.
        warning: seconds before it that SLURM sends SIGUSR2.
        max_timeouts: how often the time limit may end it before it counts as failed.
        retries: how often it may fail and be started again.
    """

    words: tuple[str, ...]
    run_dir: str
    log: str
    note: str
    time_limit: float
    warning: float
    max_timeouts: int
    retries: int

    def __call__(self) -> None:
        """Runs it; ends this process with its exit code."""
        place = Place.here()
        began = time.time()
        with _hearing() as heard:
            if place.node == 0:
                note = Note.read(Path(self.note)).beginning(place.job)
                note.write(Path(self.note))
                self._wait_for_folder(heard)
            code = 0 if self._is_finished() or heard.numbers else self._run(place, heard)
            code = code if code >= 0 else 128 - code
            if place.node == 0:
                ended = replace(note, ended=now(), seconds=note.seconds + time.time() - began, code=code)
                code = self._after(ended, place, heard, time.time() - began)
        sys.stdout.flush()
        sys.exit(code)

    # ---- the run ----------------------------------------------------------------------------------------------

    def _run(self, place: Place, heard: Heard) -> int:
        log = Path(self.log) if place.node == 0 else Path(self.log).with_suffix(f".node-{place.node}.log")
        with log.open("a", encoding="utf-8") as output:
            if log.stat().st_size:
                output.write(f"\n---- again, {now()} ----\n")
                output.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", "dumbo", *self.words],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                process_group=0,
                preexec_fn=_prepared(),
            )
            heard.tell(process)
            return process.wait()

    def _wait_for_folder(self, heard: Heard) -> None:
        """A node that SLURM lost may still run what this job is to go on with."""
        end = time.monotonic() + LEFT_OVER
        while is_claimed(Path(self.run_dir)) and time.monotonic() < end and not heard.numbers:
            time.sleep(1)

    def _is_finished(self) -> bool:
        return self._status() == "finished"

    def _status(self) -> str:
        return str(facts_if_whole(Path(self.run_dir)).get("status", ""))

    # ---- what comes after it ----------------------------------------------------------------------------------

    def _after(self, note: Note, place: Place, heard: Heard, seconds: float) -> int:
        """Asks for another start where there is to be one, and writes it down; the exit code."""
        end = time.monotonic() + LAST_WORDS
        while place.nodes > 1 and self._status() == "running" and time.monotonic() < end:
            time.sleep(0.2)
        note = self._what_next(note, heard, seconds)
        note.write(Path(self.note))  # at once: a job that is cancelled has little time
        if note.next and signal.SIGTERM in heard.numbers and not place.still_wanted():
            note = replace(note, next="")
            note.write(Path(self.note))
        if not note.next:
            return note.code or 0
        if (refused := place.again()) is not None:
            said = f"SLURM did not put the job back into the queue: {refused}"
            replace(note, code=note.code or 1, next="", said=said).write(Path(self.note))
            print(said, flush=True)
            return note.code or 1
        print(f"Back into the queue: {note.next}", flush=True)
        return place.code_for_again

    def _what_next(self, note: Note, heard: Heard, seconds: float) -> Note:
        newest = self._newest_step()
        if note.code == 0 and self._status() == "finished":
            return note
        if signal.SIGTERM in heard.numbers:
            return replace(note, next="preempted", step=newest)
        if heard.warned and note.code == 0:
            if seconds < self.time_limit - self.warning - EARLY:
                return replace(note, next="preempted", step=newest)
            if note.timeouts >= self.max_timeouts:
                limit = f"hydra.launcher.max_num_timeout={self.max_timeouts}"
                return replace(
                    note, code=1, said=f"The time limit ended it {note.timeouts + 1} times: {limit} allows no more."
                )
            stuck = note.stuck + 1 if note.timeouts and newest <= note.step else 0
            if stuck > PATIENCE:
                said = (
                    f"{stuck} time limits of {self.time_limit / 60:g} minutes in a row ended it no step further than {newest}.\n"
                    "  Write a larger hydra.launcher.timeout_min."
                )
                return replace(note, code=1, said=said)
            return replace(note, next="time limit", timeouts=note.timeouts + 1, stuck=stuck, step=newest)
        if note.code not in (0, 2, 3, 4) and not heard.numbers and note.failures < self.retries:
            return replace(note, next="failed", failures=note.failures + 1, step=newest)
        return note

    def _newest_step(self) -> int:
        names = [path.name.removeprefix("step-") for path in Path(self.run_dir).glob("checkpoints/step-*")]
        return max((int(name) for name in names if name.isdigit()), default=-1)


class Heard:
    """The signals that came, passed on to the run.

    Attributes:
        numbers: in their order.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def warned(self) -> bool:
        return any(number in WARNINGS for number in self.numbers)

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.numbers.append(number)
        if self._process is not None:
            self._process.send_signal(number)

    def tell(self, process: subprocess.Popen[Any]) -> None:
        """From now on to this process; what came before it, too."""
        self._process = process
        for number in self.numbers:
            process.send_signal(number)


@contextmanager
def _hearing() -> Iterator[Heard]:
    """Takes the signals for the length of the block."""
    heard = Heard()
    before = {number: signal.signal(number, heard.handle) for number in (*WARNINGS, signal.SIGTERM, signal.SIGINT)}
    try:
        yield heard
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier if earlier is not None else signal.SIG_DFL)


def _prepared() -> Callable[[], None]:
    """What the run's process calls first: it dies with this one, and a warning that comes too early waits for it.

    SLURM may send its warning to every process of a job. One that does not listen yet would die of it: here it is kept
    until dumbo listens (trainer/signals.py), and passed over after that.
    """
    prctl = ctypes.CDLL(None).prctl

    def prepare() -> None:
        prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)
        for number in WARNINGS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)

    return prepare
