"""What a sweep says while it runs: a table that moves on a terminal, plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dumbo.outputs.console import Console, clock
from dumbo.sweep.ledger import Ledger, Row
from dumbo.sweep.progress import Progress
from dumbo.sweep.told import counted

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from dumbo.sweep.pool import Running

SECONDS_BETWEEN_LINES = 30.0
"""In a pipe: a line of how far the running jobs are, at most so often."""
SECONDS_BETWEEN_FRAMES = 0.5
SHOWN = 24
"""Jobs in the table that moves: those that run, then the last ones that ended."""
HEAD = ("job", "state", "step", "loss", "left", "device")
SHOWN_METRICS = ("train_loss", "eval_loss", "exact_match")


class SweepTable:
    """Shows jobs as they begin, run and end.

    Args:
        metric: the sweep's, shown for jobs that are done.
        slots: how many run at once.
        planned: as `summary`; of a search.
    """

    def __init__(self, console: Console, metric: str, slots: int, planned: int = 0) -> None:
        self.console, self.metric, self.slots, self.planned = console, metric, slots, planned
        self._live: Live | None = None
        self._shown = time.monotonic()

    def began(self, row: Row) -> None:
        if not self.console.fancy:
            where = f" on {row.device}" if row.device else ""
            again = f" (attempt {row.attempt})" if row.attempt > 1 else ""
            self.console.row("", f"{row.name} is running{where}{again} …")

    def ended(self, row: Row, again: bool) -> None:
        took = clock(row.seconds)
        if row.state == "done":
            names = dict.fromkeys((*SHOWN_METRICS, self.metric))
            shown = "  ".join(f"{name} {_number(row.metrics[name])}" for name in names if name in row.metrics)
            self.console.row("", f"{row.name}  {shown}  ({took})")
        elif row.state == "failed":
            more = "; it is tried again" if again else ""
            said = " ".join((row.error or "").split("\n"))[:300]
            self.console.row("", f"{row.name}  failed (exit code {row.exit_code}){more}: {said}")
        else:
            self.console.row("", f"{row.name}  {row.state} after {took}{'; it is gone on with' if again else ''}")

    def stopping(self, signal_name: str, running: int) -> None:
        saving = (
            f"{counted(running, 'job')} that run{'s' * (running == 1)} save{'s' * (running == 1)} first"
            if running
            else "nothing runs"
        )
        self.console.row("stopping", f"{signal_name}: {saving}")

    def show(self, ledger: Ledger, running: Sequence[Running]) -> None:
        now = time.monotonic()
        if now - self._shown < (SECONDS_BETWEEN_FRAMES if self.console.fancy else SECONDS_BETWEEN_LINES):
            return
        self._shown = now
        progress = {one.job.number: one.progress for one in running}
        if self.console.fancy:
            self._draw(table(ledger, progress, most=SHOWN, caption=summary(ledger, progress, self.slots, self.planned)))
        elif running:
            self.console.row("", summary(ledger, progress, self.slots, self.planned))
            for one in running:
                cells = dict(zip(HEAD, cells_of(ledger[one.job.number], one.progress), strict=True))
                said = "  ".join(f"{key} {cells[key]}" for key in ("step", "loss", "left") if cells[key])
                self.console.row("", f"  {cells['job']}  {said or 'starting'}")

    def _draw(self, drawn: Table) -> None:
        if self._live is None:
            from rich.live import Live

            self._live = Live(console=self.console.rich, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(drawn, refresh=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def summary(ledger: Ledger, progress: Mapping[int, Progress], slots: int, planned: int = 0) -> str:
    """`12 of 40 jobs done, 2 failed, 4 running, about 1:02:03 left`.

    Args:
        planned: jobs in all, where they are not all in the ledger yet.
    """
    counts, unknown = ledger.counts(), max(0, planned - len(ledger))
    parts = [
        f"{counts.pop('done', 0)} of {len(ledger) + unknown} jobs done",
        *(f"{many} {state}" for state, many in counts.items()),
    ]
    took = [row.seconds for row in ledger.in_state("done") if row.seconds]
    if took and (left := unknown + len(ledger.in_state("waiting", "running"))):
        one = sum(took) / len(took)
        begun = sum(min(1.0, (one_of.step or 0) / one_of.total) for one_of in progress.values() if one_of.total)
        parts.append(f"about {clock(max(0.0, left - begun) * one / max(1, slots))} left")
    return ", ".join(parts)


def cells_of(row: Row, progress: Progress | None) -> tuple[str, ...]:
    """A job's line in the table: name, state, step/total, training loss, time left (taken, of one that has ended), device."""
    if progress is None:
        step = str(row.metrics.get("steps", ""))
        took = f"took {clock(row.seconds)}" if row.seconds else ""
        return row.name, row.state, step, _number(row.metrics.get("train_loss")), took, row.device or ""
    step = "" if progress.step is None else f"{progress.step}/{progress.total or '?'}"
    left = "" if progress.seconds_left is None else clock(progress.seconds_left)
    return row.name, row.state, step, _number(progress.loss), left, row.device or ""


def plain_table(ledger: Ledger, progress: Mapping[int, Progress]) -> list[str]:
    """All jobs as lines of a pipe, in columns."""
    rows = [HEAD, *(cells_of(row, progress.get(row.number)) for row in ledger)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEAD))]
    right = {"step", "loss", "left"}
    lines = []
    for row in rows:
        cells = [
            f"{cell:>{width}}" if name in right else f"{cell:<{width}}"
            for cell, width, name in zip(row, widths, HEAD, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def table(ledger: Ledger, progress: Mapping[int, Progress], *, most: int | None = None, caption: str = "") -> Table:
    """The jobs as rich draws them: those that run, those that ended last, those that wait; at most `most`."""
    from rich.markup import escape
    from rich.table import Table

    from dumbo.outputs.printable import printable

    drawn = Table(box=None, pad_edge=False, header_style="bold cyan", caption=escape(caption), caption_justify="left")
    for name in HEAD:
        drawn.add_column(name, justify="right" if name in ("step", "loss", "left") else "left", no_wrap=True)
    styles = {"failed": "red", "done": "green", "running": "default", "interrupted": "yellow", "pruned": "yellow"}
    for row in _chosen(ledger, most):
        cells = [escape(printable(cell)) for cell in cells_of(row, progress.get(row.number))]
        drawn.add_row(*cells, style=styles.get(row.state, "dim"))
    return drawn


def _chosen(ledger: Ledger, most: int | None) -> list[Row]:
    if most is None or len(ledger) <= most:
        return ledger.rows
    running = ledger.in_state("running")
    over = sorted((row for row in ledger if row.ended and row.state != "running"), key=lambda row: row.ended or "")
    kept = {row.number for row in [*running, *over[-max(0, most - len(running)) :]]}
    return [row for row in ledger if row.number in kept]


def _number(value: Any) -> str:
    with suppress(TypeError, ValueError):
        return format(float(value), ".4f")
    return ""
