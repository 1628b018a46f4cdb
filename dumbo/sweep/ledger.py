"""The ledger of a sweep: a row for each job, on disk as JSON lines; what ran, how it went, what is left.

ledger.jsonl    each line is a job's whole row; a later line of the same `number` replaces an earlier one

A change is one write and one fsync: after a crash it is there or it is not. A line that a crash cut short is passed over, since
the row that it would have replaced stands before it. Read it with Polars:
`pl.read_ndjson(path, infer_schema_length=None).unique("number", keep="last", maintain_order=True)`. No torch, no Hydra here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from dumbo.errors import RunFailed, UserError
from dumbo.outputs.numbers import finite
from dumbo.outputs.places import typed
from dumbo.outputs.whole_file import made_beside

FILE = "ledger.jsonl"
State = Literal["waiting", "running", "done", "failed", "interrupted", "pruned", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
ENDED = ("done", "pruned")
"""States of jobs that are not started again."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A job as the ledger knows it.

    Args:
        number: counts the jobs of the sweep, from 0.
        name: its run's folder, relative to the sweep's.
        overrides: its own (swept) words, values of secrets masked.
        config_hash: run.json's; "": not known yet.
        state: one of STATES.
        attempt: how often it was started.
        started: when it was first started, ended: when its last attempt was over (ISO, UTC); None: not yet.
        seconds: of all its attempts.
        exit_code: of its last attempt; None: it has none.
        result: the sweep's metric.
        metrics: run.json's flat metrics; {} until it is done.
        error: the last lines it said, when it failed.
        device: where it ran: "GPU 0", "cpu 1", "slurm 12_3".
    """

    number: int
    name: str
    overrides: list[str] = field(default_factory=list)
    config_hash: str = ""
    state: State = "waiting"
    attempt: int = 0
    started: str | None = None
    ended: str | None = None
    seconds: float = 0.0
    exit_code: int | None = None
    result: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    device: str | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """Equal for jobs that are the same job, whatever order their words are in."""
        return tuple(sorted(self.overrides))


KEYS = tuple(one.name for one in fields(Row))


class Ledger:
    """The rows of one sweep, in memory and on disk. One process writes at a time: the one that has the sweep's lock.

    Attributes:
        path: ledger.jsonl.
        torn: lines that a crash cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn = 0
        self._rows: dict[int, Row] = {}

    @classmethod
    def open(cls, folder: Path) -> Ledger:
        """The ledger of a sweep's folder; without rows when there is no file.

        Raises:
            UserError: the file is not what a sweep writes.
        """
        ledger = cls(folder / FILE)
        text = ledger.path.read_text(encoding="utf-8", errors="replace") if ledger.path.is_file() else ""
        for line in filter(None, text.split("\n")):
            try:
                found = json.loads(line)
            except ValueError:
                ledger.torn += 1
                continue
            ledger.take([ledger._row(found)])
        return ledger

    def take(self, rows: Iterable[Row]) -> None:
        """Adds rows or replaces those of the same numbers, in memory alone."""
        self._rows.update((row.number, row) for row in rows)

    def _row(self, found: Any) -> Row:
        if not isinstance(found, dict) or not isinstance(found.get("number"), int) or found.get("state") not in STATES:
            raise UserError(
                f"{self.path} is not what a sweep writes: {json.dumps(found)[:100]}\n  Write another sweep_dir=FOLDER."
            )
        return Row(**{key: found[key] for key in KEYS if key in found})

    @property
    def rows(self) -> list[Row]:
        """All rows, by number."""
        return [self._rows[number] for number in sorted(self._rows)]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, number: int) -> Row:
        return self._rows[number]

    def in_state(self, *states: State) -> list[Row]:
        """The rows in one of these states."""
        return [row for row in self.rows if row.state in states]

    def counts(self) -> dict[str, int]:
        """State -> number of jobs, those without any left out."""
        return {state: count for state in STATES if (count := len(self.in_state(state)))}

    @property
    def next_number(self) -> int:
        return max(self._rows, default=-1) + 1

    def change(self, number: int, **values: Any) -> Row:
        """Changes keys of a row, on disk too; returns the new row."""
        row = replace(self._rows[number], **values)
        self.put([row])
        return row

    def put(self, rows: Iterable[Row]) -> None:
        """Adds rows or replaces those of the same numbers: one write, however many they are.

        Raises:
            RunFailed: the file cannot be written; every row on disk is as it was before, or as it is now.
        """
        rows = list(rows)
        if not rows:
            return
        text = "".join(map(_line, rows))
        with self._written():
            self._append(text)
        self.take(rows)

    def _append(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(file).st_size
            cut = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # a torn line must not swallow this one
            _write_all(file, ("\n" if cut else "") + text)
        finally:
            os.close(file)

    def compact(self) -> None:
        """Rewrites the file with one line a job.

        Raises:
            RunFailed: it cannot be written; it is as it was.
        """
        if not self._rows:
            return
        with self._written(), made_beside(self.path) as beside:
            beside.write_bytes("".join(map(_line, self.rows)).encode("utf-8", errors="replace"))
        self.torn = 0

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFailed(
                f"sweep: {self.path} cannot be written ({error.strerror}); jobs that run save what they have.\n"
                f"  Mend it, then go on: python -m dumbo -m {typed('sweep_dir', self.path.parent)}"
            ) from error

    def matching(self, jobs: Sequence[Sequence[str]]) -> list[Row | None]:
        """For each job's own words its row, or None. Jobs that are equal (a value typed twice) match one after another."""
        known: dict[tuple[str, ...], list[Row]] = {}
        for row in self.rows:
            known.setdefault(row.identity, []).append(row)
        found: list[Row | None] = []
        for words in jobs:
            rows = known.get(tuple(sorted(words)), [])
            found.append(rows.pop(0) if rows else None)
        return found


def _line(row: Row) -> str:
    return json.dumps(finite(asdict(row)), ensure_ascii=False) + "\n"


def _write_all(file: int, text: str) -> None:
    data = text.encode("utf-8", errors="replace")
    while data:
        data = data[os.write(file, data) :]
    os.fsync(file)
