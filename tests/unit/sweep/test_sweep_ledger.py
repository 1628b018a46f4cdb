"""The ledger: whole rows on disk, torn lines passed over, Polars reads it, 10,000 jobs open at once."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import polars as pl
import pytest

from dumbo.errors import RunFailed, UserError
from dumbo.sweep.ledger import FILE, STATES, Ledger, Row


def rows(count: int) -> list[Row]:
    return [Row(number=n, name=f"{n:03d}-x", overrides=[f"trainer.seed={n}"]) for n in range(count)]


def test_a_later_line_replaces_an_earlier_one(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path)
    ledger.put(rows(3))
    ledger.change(1, state="running", attempt=1, device="cpu 0")
    done = ledger.change(1, state="done", metrics={"eval_loss": 0.5, "steps": 3}, result=0.5, seconds=1.5)
    assert len((tmp_path / FILE).read_text().splitlines()) == 5
    again = Ledger.open(tmp_path)
    assert again.rows == ledger.rows
    assert again[1] == done
    assert again.counts() == {"waiting": 2, "done": 1}
    assert again.next_number == 3
    again.compact()
    assert len((tmp_path / FILE).read_text().splitlines()) == 3
    assert Ledger.open(tmp_path).rows == ledger.rows
    assert [path.name for path in tmp_path.iterdir()] == [FILE], "nothing is left aside"


def test_every_prefix_of_the_file_is_a_ledger(tmp_path: Path) -> None:
    """Whatever a crash leaves of the last write: rows are as before it or after it, and the next write is whole."""
    ledger = Ledger.open(tmp_path)
    ledger.put(rows(2))
    ledger.change(0, state="running", error="ünïcødé\nlines")
    whole = (tmp_path / FILE).read_bytes()
    first = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    for cut in random.Random(1).sample(range(first, len(whole)), 25):
        (tmp_path / FILE).write_bytes(whole[:cut])
        torn = Ledger.open(tmp_path)
        assert torn[0].state == "waiting" or cut == len(whole) - 1
        assert len(torn) == 2
        torn.change(1, state="done")
        again = Ledger.open(tmp_path)
        assert again[1].state == "done"
        assert again.rows == torn.rows
        again.compact()
        assert all(json.loads(line) for line in (tmp_path / FILE).read_text().splitlines())


def test_a_disk_that_is_full_is_said(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path)
    ledger.put(rows(1))
    whole = (tmp_path / FILE).read_text()
    (tmp_path / FILE).rename(tmp_path / "kept")
    (tmp_path / FILE).symlink_to("/dev/full")
    with pytest.raises(RunFailed, match=r"No space left on device.*\n.*go on: python -m dumbo -m .*sweep_dir="):
        ledger.change(0, state="running")
    assert ledger[0].state == "waiting", "as on disk"
    (tmp_path / "kept").rename(tmp_path / FILE)
    assert (tmp_path / FILE).read_text() == whole
    (tmp_path / f".{FILE}.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(RunFailed, match="No space left"):
        ledger.compact()
    assert [path.name for path in tmp_path.iterdir()] == [FILE], "as it was, nothing is left aside"


def test_polars_reads_it(tmp_path: Path) -> None:
    """Also where metrics come late and are not the same for all."""
    ledger = Ledger.open(tmp_path)
    ledger.put(rows(300))
    ledger.change(299, state="done", metrics={"eval_loss": 0.25, "odd": float("nan")}, result=0.25)
    ledger.change(7, state="failed", error="it\nfailed", exit_code=1)
    frame = pl.read_ndjson(tmp_path / FILE, infer_schema_length=None).unique("number", keep="last", maintain_order=True)
    assert frame.height == 300
    last = frame.sort("number").row(-1, named=True)
    assert last["metrics"]["eval_loss"] == 0.25
    assert last["metrics"]["odd"] is None, "no number: null, as JSON has none"
    assert frame.filter(pl.col("state") == "failed")["number"].to_list() == [7]


def test_ten_thousand_jobs(tmp_path: Path) -> None:
    """Opening is one read; a change is one write of one row, whatever the ledger's size."""
    Ledger.open(tmp_path).put(
        [Row(number=n, name=f"{n:03d}-x", overrides=[f"trainer.seed={n}"], metrics={"eval_loss": 1 / (n + 1), "steps": n})
         for n in range(10_000)]
    )  # fmt: skip
    size = os.path.getsize(tmp_path / FILE)
    began = time.process_time()
    ledger = Ledger.open(tmp_path)
    assert time.process_time() - began < 1, "promised; 0.2 s of CPU time here"
    assert len(ledger) == 10_000
    began = time.process_time()
    for number in range(20):
        ledger.change(number, state="running")
    assert (time.process_time() - began) / 20 < 0.05
    assert os.path.getsize(tmp_path / FILE) - size < 20 * 400
    assert ledger.matching([[f"trainer.seed={n}"] for n in (3, 20_000)]) == [ledger[3], None]


def test_the_same_job_whatever_the_order_of_its_words(tmp_path: Path) -> None:
    """A value typed twice is two jobs; each finds its own row again."""
    ledger = Ledger.open(tmp_path)
    ledger.put(
        [Row(number=0, name="000", overrides=["a=1", "b=2"]), Row(number=1, name="001", overrides=["a=1", "b=2"])]
    )
    assert ledger.matching([["b=2", "a=1"], ["a=1", "b=2"], ["a=1", "b=2"], ["a=1"]]) == [
        ledger[0],
        ledger[1],
        None,
        None,
    ]


@pytest.mark.parametrize("text", ["[]\n", '{"number": "0", "state": "done"}\n', '{"number": 0, "state": "?"}\n', "1\n"])
def test_what_is_no_ledger_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match="is not what a sweep writes"):
        Ledger.open(tmp_path)


def test_keys_of_a_later_dumbo_are_left_out(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"number": 0, "name": "000", "state": "done", "colour": "red"}\n')
    assert Ledger.open(tmp_path).rows == [Row(number=0, name="000", state="done")]
    assert "waiting" in STATES
