"""The terminal: labelled rows, one progress bar; in a pipe or under CI plain lines without control characters.

Everything shown goes into the run's dumbo.log too, once `log_to` has been called. rich is imported only when a
terminal is there to be drawn on.
"""

from __future__ import annotations

import io
import os
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from dumbo.outputs.printable import printable

if TYPE_CHECKING:
    import rich.console
    import rich.progress

LABEL = 10
"""Columns of a row's label."""
WIDTH = 118
SECONDS_BETWEEN_LINES = 5.0
"""In a pipe: at most one line of progress in so many seconds."""


class Console:
    """Where a command speaks.

    Args:
        stream: where to; None: standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream if stream is not None else sys.stdout
        terminal = hasattr(self.stream, "isatty") and self.stream.isatty()
        self.fancy = terminal and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"
        self._log: TextIO | None = None

    @cached_property
    def rich(self) -> rich.console.Console:
        from rich.console import Console as RichConsole

        return RichConsole(file=self.stream, highlight=False, soft_wrap=False)

    def log_to(self, path: Path) -> None:
        """Copies everything said from now on into a file."""
        self._log = path.open("a", encoding="utf-8", buffering=1)

    def log(self, text: str) -> None:
        """Into the file only."""
        if self._log is not None and not self._log.closed:
            self._log.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    def say(self, text: str) -> None:
        """A line for the stream. When nobody reads it any more (`| head`) the run goes on, into its log."""
        try:
            print(text, file=self.stream, flush=True)
        except BrokenPipeError:
            self.log("standard output is closed; from here on only this file is written")
            self.stream = io.StringIO()

    def plain(self, text: str) -> None:
        """A line as it is, made safe."""
        safe = printable(text, keep="\n")
        self.log(safe)
        if self.fancy:
            self.rich.print(safe, markup=False, highlight=False, soft_wrap=True)
        else:
            self.say(safe)

    def row(self, label: str, text: str) -> None:
        """A label and what it says; long texts go on under themselves."""
        safe = printable(text, keep="\n")
        self.log(f"{label:<{LABEL}}{safe}")
        if not self.fancy:
            self.say(f"{label:<{LABEL}}{safe}".replace("\n", "\n" + " " * LABEL).rstrip())
            return
        from rich.text import Text

        width = max(40, min(WIDTH, self.rich.width) - LABEL)
        lines = [part for line in safe.split("\n") for part in (_wrapped(line, width) or [""])]
        for number, line in enumerate(lines):
            shown = Text(f"{label if number == 0 else '':<{LABEL}}", style="bold cyan") + Text(line, style="default")
            self.rich.print(shown, soft_wrap=True)

    def heading(self, text: str) -> None:
        """A line that opens a part."""
        safe = printable(text)
        self.log(safe)
        if self.fancy:
            from rich.text import Text

            self.rich.print(Text(safe, style="bold"))
        else:
            self.say(safe)

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Says what is being done while it is done."""
        self.log(f"{text} …")
        if self.fancy:
            from rich.text import Text

            with self.rich.status(Text(printable(text))):  # a Text: what stands in brackets is no markup
                yield
        else:
            self.say(f"{'':<{LABEL}}{printable(text)} …")
            yield

    @contextmanager
    def counter(self, text: str) -> Iterator[Counter]:
        """Counts rows of an unknown number."""
        if not self.fancy:
            yield Counter(self, text, None)
            return
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        with Progress(*columns, console=self.rich, transient=True) as progress:
            yield Counter(self, text, progress)

    @contextmanager
    def training(self, steps: int, done: int) -> Iterator[TrainingBar]:
        """The bar of a run: `steps` in all, `done` already."""
        if not self.fancy:
            yield TrainingBar(self, steps, done, None)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn(f"{'training':<{LABEL}}", style="bold cyan"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False), TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        )  # fmt: skip
        with Progress(*columns, console=self.rich, refresh_per_second=4) as progress:
            yield TrainingBar(self, steps, done, progress)


def _wrapped(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False, replace_whitespace=False)


class Counter:
    """How many rows are done. Made by `Console.counter`."""

    def __init__(self, console: Console, text: str, progress: rich.progress.Progress | None) -> None:
        self._console, self._text, self._progress = console, text, progress
        self._task = progress.add_task(text) if progress else None
        self._began = self._said = time.monotonic()

    def update(self, name: str, rows: int) -> None:
        """So many rows of the part called `name`."""
        text = f"{self._text} {name}: {rows:,} rows"
        now = time.monotonic()
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=text)
        elif now - self._said > SECONDS_BETWEEN_LINES:
            self._said = now
            speed = rows / max(1e-9, now - self._began)
            self._console.row("", f"{text}, {speed:,.{1 if speed < 10 else 0}f} a second")


class TrainingBar:
    """Step, loss, speed, time left. Made by `Console.training`."""

    def __init__(self, console: Console, steps: int, done: int, progress: rich.progress.Progress | None) -> None:
        self._console, self._steps, self._progress = console, steps, progress
        self._task = progress.add_task("", total=steps, completed=done, numbers="") if progress else None
        self._first, self._began, self._said = done, time.monotonic(), 0.0

    def step(self, step: int, row: Mapping[str, Any] | None = None) -> None:
        """A step is done; `row` when its numbers were logged."""
        if row is not None:
            self._console.log(f"step {step}  " + "  ".join(f"{key} {value}" for key, value in row.items()))
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step)
            if row is not None:
                self._progress.update(self._task, numbers=numbers(row))
            return
        now = time.monotonic()
        if row is not None and (now - self._said > SECONDS_BETWEEN_LINES or step == self._steps):
            self._said = now
            text = f"{'training':<{LABEL}}{step}/{self._steps}  {numbers(row)}{self._left(step, now)}"
            self._console.say(text)

    def _left(self, step: int, now: float) -> str:
        done = step - self._first
        if done < 1 or step >= self._steps:
            return ""
        return f"  {clock((now - self._began) / done * (self._steps - step))} left"

    def note(self, label: str, text: str) -> None:
        """A row above the bar."""
        self._console.row(label, text)


def numbers(row: Mapping[str, Any]) -> str:
    """A logged row on one line."""
    parts = [f"loss {_number(row.get('loss'), '.3f')}"]
    for key, label, form in (("grad_norm", "grad", ".2f"), ("lr", "lr", ".1e")):
        if row.get(key) is not None:
            parts.append(f"{label} {_number(row[key], form)}")
    if row.get("tokens_per_s"):
        speed = float(row["tokens_per_s"])
        parts.append(f"{speed / 1000:.1f}k tok/s" if speed >= 1000 else f"{speed:.0f} tok/s")
    if row.get("mfu") is not None:
        parts.append(f"MFU {100 * row['mfu']:.1f}%")
    if row.get("peak_memory_gib") is not None:
        parts.append(f"{row['peak_memory_gib']:.1f} GiB")
    return "  ".join(parts)


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "not finite"


def clock(seconds: float) -> str:
    """`4:12`, `1:02:03`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
