"""The loop: as many jobs at once as there are slots; asked, watched, pruned, told; stopped by signals."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dumbo.outputs.console import Console
from dumbo.outputs.runs import facts_if_whole
from dumbo.sweep import outcome
from dumbo.sweep import pool as module
from dumbo.sweep.heard import Heard
from dumbo.sweep.job import Start
from dumbo.sweep.ledger import Ledger, Row
from dumbo.sweep.pool import Grid, Job, Pool
from dumbo.sweep.progress import Progress
from dumbo.sweep.slots import Slot
from dumbo.sweep.table import SweepTable


@dataclass
class Fake:
    """A job that runs for some ticks, and ends when it hears a signal."""

    start: Start
    ticks: int
    heard: list[int] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.start.log.with_suffix("")

    def poll(self) -> int | None:
        if self.heard and self.ticks >= 0:
            return self._leave("preempted", 128 + self.heard[-1])
        self.ticks -= 1
        if self.ticks > 0:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": 10 - self.ticks, "loss": self.ticks}) + "\n")
            return None
        return self._leave("finished", 0)

    def _leave(self, status: str, code: int) -> int:
        (self.folder / "run.json").write_text(json.dumps({"status": status, "metrics": {"eval_loss": 1.5}}))
        return code

    def signal(self, number: int) -> None:
        self.heard.append(number)


@dataclass
class Starter:
    ticks: int = 3
    started: list[Fake] = field(default_factory=list)
    at_once: int = 0
    each_tick: Callable[[], None] = lambda: None

    def start(self, start: Start) -> Fake:
        one = Fake(start, self.ticks)
        one.folder.mkdir(exist_ok=True)
        self.started.append(one)
        return one

    def wait(self, seconds: float) -> None:
        running = [one for one in self.started if not (one.folder / "run.json").is_file()]
        self.at_once = max(self.at_once, len(running))
        self.each_tick()

    def close(self) -> None:
        return None


@dataclass
class Search:
    """Asks for `count` jobs, one after another of which the results are needed; prunes some."""

    ledger: Ledger
    count: int
    pruned: Sequence[int] = ()
    told: list[Row] = field(default_factory=list)
    seen: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    asked: int = 0

    def next(self) -> Job | None:
        if self.asked == self.count or self.asked - len(self.told) >= 2:  # it wants to know those first
            return None
        number, self.asked = self.asked, self.asked + 1
        self.ledger.put([Row(number=number, name=f"{number:03d}")])
        return Job(number=number, name=f"{number:03d}", words=["train", f"trainer.seed={number}"])

    def watch(self, job: Job, last_rows: Sequence[dict[str, Any]]) -> bool:
        self.seen.setdefault(job.number, []).extend(last_rows)
        return job.number in self.pruned

    def finished(self, job: Job, outcome: Row) -> None:
        self.told.append(outcome)


@pytest.fixture(autouse=True)
def _looks_each_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", -1.0)


def pool_of(folder: Path, starter: Starter, slots: int = 2, retries: int = 0) -> Pool:
    display = SweepTable(Console(io.StringIO()), "eval_loss", slots)
    names = [Slot(f"cpu {number}", {"PLACE": str(number)}) for number in range(slots)]
    return Pool(folder, Ledger.open(folder), names, starter, display, retries, "eval_loss")


def grid(pool: Pool, count: int) -> Grid:
    pool.ledger.put([Row(number=n, name=f"{n:03d}") for n in range(count)])
    return Grid.of(Job(number=n, name=f"{n:03d}", words=[str(n)]) for n in range(count))


def test_slots_are_filled_and_never_overfilled(tmp_path: Path) -> None:
    starter = Starter()
    pool = pool_of(tmp_path, starter, slots=3)
    pool.run(grid(pool, 8))
    assert starter.at_once == 3
    assert [row.state for row in pool.ledger] == ["done"] * 8
    assert {row.device for row in pool.ledger} == {"cpu 0", "cpu 1", "cpu 2"}
    assert {one.start.environment["PLACE"] for one in starter.started} == {"0", "1", "2"}
    assert [row.result for row in Ledger.open(tmp_path)] == [1.5] * 8
    assert pool.heard.first is None


def test_a_source_that_wants_to_know_first(tmp_path: Path) -> None:
    """`next` says None while it waits for results, and the loop goes on as long as something runs."""
    starter = Starter()
    pool = pool_of(tmp_path, starter, slots=4)
    search = Search(pool.ledger, 7)
    pool.run(search)
    assert starter.at_once == 2
    assert sorted(row.number for row in search.told) == list(range(7))
    assert all(row.result == 1.5 for row in search.told)


def test_a_pruned_job_is_stopped_with_the_signal_that_saves(tmp_path: Path) -> None:
    starter = Starter(ticks=6)
    pool = pool_of(tmp_path, starter, retries=3)
    search = Search(pool.ledger, 4, pruned=[1, 2])
    pool.run(search)
    assert [row.state for row in pool.ledger] == ["done", "pruned", "pruned", "done"]
    assert [one.heard for one in starter.started] == [[], [signal.SIGTERM], [signal.SIGTERM], []], "once, and not again"
    assert [row.attempt for row in pool.ledger] == [1] * 4
    assert [row["step"] for row in search.seen[0]] == sorted({row["step"] for row in search.seen[0]}), "each row once"
    assert {row.number: row.state for row in search.told}[2] == "pruned"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_nothing_else_is_started(number: signal.Signals, tmp_path: Path) -> None:
    starter = Starter(ticks=100)
    starter.each_tick = lambda: os.kill(os.getpid(), number) if starter.started[0].ticks == 95 else None
    pool = pool_of(tmp_path, starter, retries=3)
    before = signal.getsignal(number)
    pool.run(grid(pool, 5))
    assert pool.heard.first == number.name
    assert [row.state for row in pool.ledger] == ["interrupted"] * 2 + ["waiting"] * 3
    assert all(one.heard[0] == number for one in starter.started)
    assert signal.getsignal(number) == before


def test_a_ctrl_c_that_a_wrapper_passes_on_is_no_second_one() -> None:
    heard = Heard()
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        heard.hear(number, None)
    assert heard.numbers == [signal.SIGINT, signal.SIGTERM, signal.SIGTERM]


def test_jobs_that_do_not_end_are_killed_at_the_third_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dumbo.sweep.heard.APART", 0.0)

    @dataclass
    class Deaf(Fake):
        def poll(self) -> int | None:
            return -9 if signal.SIGKILL in self.heard else None

    starter = Starter()
    starter.start = lambda start: starter.started.append(one := Deaf(start, 1)) or one  # type: ignore[method-assign]
    starter.wait = lambda seconds: os.kill(os.getpid(), signal.SIGINT)  # type: ignore[method-assign]
    pool = pool_of(tmp_path, starter, slots=1)
    pool.run(grid(pool, 1))
    assert starter.started[0].heard == [signal.SIGINT, signal.SIGINT, signal.SIGKILL]
    assert pool.ledger[0].state == "interrupted"


def test_an_attempts_words_are_not_another_attempts(tmp_path: Path) -> None:
    """The last lines are those of the attempt; the log keeps both."""
    starter = Starter()
    said = iter(["first\n", "second\n"])

    @dataclass
    class Fails(Fake):
        def poll(self) -> int | None:
            with self.start.log.open("a") as file:
                file.write(next(said))
            return 1

    starter.start = lambda start: Fails(start, 1)  # type: ignore[method-assign, assignment]
    pool = pool_of(tmp_path, starter, slots=1, retries=1)
    pool.run(grid(pool, 1))
    row = pool.ledger[0]
    assert (row.state, row.attempt, row.error) == ("failed", 2, "second")
    log = (tmp_path / "000.log").read_text()
    assert log.startswith("first\n\n---- attempt 2, ")
    assert log.endswith("second\n")


def test_a_log_that_is_gone_does_not_end_the_sweep_and_a_long_one_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome, "LOG_END", 20)

    @dataclass
    class Fails(Fake):
        def poll(self) -> int | None:
            if self.start.words == ["0"]:
                self.start.log.unlink()
            else:
                self.start.log.write_text("x" * 100 + "\nthe last line\n")
            return 1

    starter = Starter()
    starter.start = lambda start: Fails(start, 1)  # type: ignore[method-assign, assignment]
    pool = pool_of(tmp_path, starter, slots=1)
    pool.run(grid(pool, 2))
    assert [(row.state, row.error) for row in pool.ledger] == [
        ("failed", "no output"),
        ("failed", "xxxxx\nthe last line"),
    ]


def test_what_cannot_be_read_of_a_job_is_no_end_of_the_sweep(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "000")
    assert progress.new_rows() == []
    (tmp_path / "000").touch()  # no folder: reading in it fails with something else than "not found"
    assert progress.new_rows() == []
    (tmp_path / "000").unlink()
    (tmp_path / "000" / "run.json").mkdir(parents=True)
    assert facts_if_whole(tmp_path / "000") == {}
    (tmp_path / "000" / "metrics.jsonl").write_text('[1]\n3\n{"step": 4, "loss": 2.5}\n{"st')
    assert progress.new_rows() == [{"step": 4, "loss": 2.5}]
    assert (progress.step, progress.loss) == (4, 2.5)
