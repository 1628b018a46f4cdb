"""Rows formatted by several processes: the same store, errors at the row's turn, and no process left behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dumbo.errors import RunFailed, UserError
from dumbo.formatter.chat import Chat
from dumbo.prepare import documents, processes
from dumbo.prepare.processes import mapped

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


def hashes(store):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in store.folder.iterdir()}


@pytest.mark.parametrize(
    "options",
    [
        {"max_seq_len": 2048},
        {"max_seq_len": 100, "too_long": "split"},
        {"max_seq_len": 150, "too_long": "drop", "on_bad_row": "skip"},
    ],
    ids=lambda options: options.get("too_long", "whole"),
)
def test_the_store_is_the_same_byte_for_byte(options, data, tmp_path, smollm_tokenizer, prepared, monkeypatch):
    """Three processes from the second batch on, against this one alone. Every 900th row is bad where those are skipped."""
    lines = (data / "gsm8k" / "train.jsonl").read_text().splitlines()
    if "on_bad_row" in options:
        lines[::900] = ['{"question": 1, "answer": "b"}'] * len(lines[::900])
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines))
    found = []
    for number, count in enumerate((1, 3)):
        monkeypatch.setenv("DUMBO_CACHE", str(tmp_path / f"cache-{number}"))
        monkeypatch.setattr(documents, "usable", lambda count=count: count)
        monkeypatch.setattr(documents, "ALONE", 1)
        found.append(hashes(prepared(str(file), Chat(), tokenizer=smollm_tokenizer, **options).train.store))
    assert found[0] == found[1]
    assert len(found[0]) == 8


def test_a_bad_row_far_down_is_named(tmp_path, prepared, monkeypatch, fresh_cache):
    rows = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(8000)]
    rows[7000]["answer"] = ""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(documents, "usable", lambda: 2)
    with pytest.raises(UserError, match=r"rows\.jsonl, line 7001"):
        prepared(str(file), Chat())
    assert not list(fresh_cache.iterdir())


def test_results_come_in_order_and_more_may_be_said_than_a_pipe_holds():
    items = [bytes([n]) * (1 << 20) for n in range(12)]
    assert list(mapped(lambda item: item * 2, items, 3)) == [item * 2 for item in items]


class Odd(Exception):
    def __init__(self, one, two):  # cannot be pickled: its arguments are not those of Exception
        super().__init__(one)


@pytest.mark.parametrize(("error", "raised"), [(UserError("mend it"), UserError), (Odd("a", "b"), RuntimeError)])
def test_an_error_rises_at_its_items_turn(error, raised):
    def work(item):
        if item == 5:
            raise error
        return item

    done = []
    with pytest.raises(raised, match=r"mend it|Odd"):
        done.extend(mapped(work, range(100), 2))
    results = mapped(work, range(100), 2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    results.close()


def test_a_process_that_is_killed_ends_the_run():
    def work(item):
        if item == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(RunFailed, match=r"exit code -9"):
        list(mapped(work, range(50), 2))


def test_a_process_that_is_killed_in_the_midst_of_an_answer_ends_the_run():
    def work(item):
        if item == 1:
            time.sleep(0.5)  # its first answer is larger than the pipe, and nobody reads it
            os.kill(os.getpid(), signal.SIGKILL)
        return b"x" * (8 << 20)

    helper = processes._Helper(work, [])
    helper.give(0)
    helper.give(1)
    helper.process.join(20)
    with pytest.raises(RunFailed, match=r"exit code -9"):
        helper.answer()
    helper.kill()


@pytest.mark.parametrize("heard", [True, False])
def test_an_answer_that_cannot_be_sent_ends_the_run(heard, monkeypatch, capfd):
    """Also where nobody hears of it: stderr is closed."""
    parent, right = os.getpid(), processes.Connection.send_bytes

    def fails(self, *arguments):
        if os.getpid() == parent:
            return right(self, *arguments)
        if not heard:
            sys.stderr = io.StringIO()
            sys.stderr.close()
        raise OSError(12, "no room for it")

    monkeypatch.setattr(processes.Connection, "send_bytes", fails)
    with pytest.raises(RunFailed, match=r"exit code 1"):
        list(mapped(lambda item: item, range(4), 2))
    assert ("no room for it" in capfd.readouterr().err) == heard


class Unreadable:
    def __reduce__(self):
        return (int, ("not a number",))


def test_an_item_that_cannot_be_read_rises_at_its_turn():
    results = mapped(lambda item: item, [1, Unreadable(), 2], 2)
    assert next(results) == 1
    with pytest.raises(ValueError, match="not a number"):
        next(results)


class Fails:
    """Raises in the parent, as an answer that is read."""

    def __reduce__(self):
        return (os.stat, ("/no/such/file",))


def test_an_answer_that_cannot_be_read_rises_as_it_is_and_at_its_turn():
    results = mapped(lambda item: Fails() if item == 2 else item, range(6), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(FileNotFoundError, match="no/such/file"):
        next(results)


def test_slow_items_have_a_process_each_and_quick_ones_need_few():
    def slow(item):
        time.sleep(1.5)
        return os.getpid()

    assert len(set(mapped(slow, range(6), 6))) == 6
    unhurried = (time.sleep(0.3) or item for item in range(8))
    assert len(set(mapped(lambda item: os.getpid(), unhurried, 8))) <= 3, "one, unless the machine is busy"


def test_threads_of_the_tokenizer_are_as_before(monkeypatch):
    for before in (None, "true"):
        if before is None:
            monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
        else:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
        assert set(mapped(lambda _: os.environ["TOKENIZERS_PARALLELISM"], range(4), 2)) == {"false"}
        assert os.environ.get("TOKENIZERS_PARALLELISM") == before


def test_one_core_or_a_daemon_works_alone(monkeypatch):
    assert list(mapped(lambda item: (item, os.getpid()), [1], 1)) == [(1, os.getpid())]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(500))
    assert processes.usable() == processes.MOST
    monkeypatch.setattr(processes.multiprocessing, "current_process", lambda: type("P", (), {"daemon": True}))
    assert processes.usable() == 1


PARENT = """
import os, time
from dumbo.prepare.processes import AHEAD, mapped
print(AHEAD, flush=True)
def work(item):
    time.sleep(0.2)
    return os.getpid()
for pid in mapped(work, range(1000), 3):
    print(pid, flush=True)
"""


def test_no_process_is_left_behind_a_killed_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    ahead = int(parent.stdout.readline())
    helpers = {int(parent.stdout.readline()) for _ in range(3 * ahead)}
    assert len(helpers) == 3
    parent.kill()
    parent.wait()
    limit = time.monotonic() + 20
    while alive := {pid for pid in helpers if _alive(pid)}:
        assert time.monotonic() < limit, alive
        time.sleep(0.1)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
