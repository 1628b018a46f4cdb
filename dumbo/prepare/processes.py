"""One function over many items, in as many processes as there are cores, results in the items' order.

documents.py prepares batches of rows with it. The processes are forked: what the function needs (a formatter, a
tokenizer) is there at once, also where it was typed into a notebook, and nothing heavy is imported again. A forked
process may not use what had threads in its parent, so reading (Polars) and writing stay with the parent, and the
library tokenizers is told to do without threads in the others.

A parent that is killed leaves none behind: each ends when its pipe does.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from dumbo.errors import RunFailed
from dumbo.trainer.signals import WARNINGS

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Items, on average, that a process has been given and not answered: it need not wait while the parent writes."""
MOST = 32
"""Reading and writing, which the parent does alone, keeps no more of them busy."""
TURN = 2e-4
"""Seconds after which a helper that works lets its other threads on. Python's own 5 ms, waited for every 64 KiB of an item, had
the parent wait 7 ms an item, one helper after the other."""


def usable() -> int:
    """How many processes can work here at once; 1: only this one."""
    forks = sys.platform == "linux" and not multiprocessing.current_process().daemon
    return min(MOST, len(os.sched_getaffinity(0))) if forks else 1


def mapped(work: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result]:
    """`work(item)` for each item, in order; in this process when `processes` is 1.

    Raises:
        whatever `work` raises, at the item's turn.
        RunFailed: a process was ended from outside.
    """
    if processes == 1:
        yield from map(work, items)
        return
    helpers: list[_Helper] = []
    waiting: deque[_Helper] = deque()
    try:
        for item in items:
            if len(waiting) == AHEAD * processes:
                yield waiting.popleft().answer()
            helper = next((one for one in helpers if one.is_idle()), None)
            if helper is None and len(helpers) < processes:
                helper = _Helper(work, helpers)
                helpers.append(helper)
            helper = helper or min(helpers, key=lambda one: one.unanswered)
            helper.give(item)
            waiting.append(helper)
        while waiting:
            yield waiting.popleft().answer()
    finally:
        for helper in helpers:
            helper.kill()
        for helper in helpers:  # they give their memory back side by side
            helper.process.join()


class _Helper:
    """A forked process and the parent's end of its pipe."""

    def __init__(self, work: Callable[[Any], Any], others: list[_Helper]) -> None:
        self.unanswered = 0
        self.answers: deque[bytes] = deque()  # read before their turn
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        parents = [self.connection, *(other.connection for other in others)]
        self.process = context.Process(target=_serve, args=(work, theirs, parents), daemon=True)
        before = os.environ.get("TOKENIZERS_PARALLELISM")
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # looked at when the process forks, and kept by the child
        try:
            self.process.start()
        finally:
            if before is None:
                del os.environ["TOKENIZERS_PARALLELISM"]
            else:
                os.environ["TOKENIZERS_PARALLELISM"] = before
        theirs.close()

    def give(self, item: Any) -> None:
        data = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        try:
            self.connection.send_bytes(data)
        except OSError as error:
            raise self._ended() from error
        self.unanswered += 1

    def is_idle(self) -> bool:
        """Whether it has answered all that it was given."""
        while self.unanswered and self.connection.poll():
            self._take()
        return not self.unanswered

    def answer(self) -> Any:
        """The next one; raises what the work raised."""
        if not self.answers:
            self._take()
        done, value = pickle.loads(self.answers.popleft())
        if not done:
            raise value
        return value

    def _take(self) -> None:
        try:
            self.answers.append(self.connection.recv_bytes())
        except (EOFError, OSError) as error:  # also in the midst of an answer
            raise self._ended() from error
        self.unanswered -= 1

    def kill(self) -> None:
        self.connection.close()
        self.process.kill()

    def _ended(self) -> RunFailed:
        self.process.join(5)
        code = self.process.exitcode
        killed = code == -signal.SIGKILL
        why = (
            "the system ends processes in this way when memory runs out"
            if killed
            else "what it said of it stands above"
        )
        return RunFailed(f"A process that prepares data ended (exit code {code}); {why}.")


def _serve(work: Callable[[Any], Any], connection: Connection, parents: list[Connection]) -> None:
    """The life of a helper: answers what it is given until there is no more, or no parent."""
    for number in (signal.SIGINT, *WARNINGS):
        signal.signal(number, signal.SIG_IGN)  # the parent hears it too, and ends its helpers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.setswitchinterval(TURN)
    gc.freeze()  # what was there before the fork is not looked at again: a fifth of a helper's time, and its own copy of it all
    for end in parents:
        end.close()  # else a helper would hold its own pipe, or an earlier one's, open when the parent is gone
    items: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    for way, line in ((_read, items), (_send, answers)):
        threading.Thread(target=way, args=(connection, line), daemon=True).start()
    while (item := items.get()) is not None:
        answers.put(_answer(work, item))


def _read(connection: Connection, items: queue.SimpleQueue[bytes | None]) -> None:
    """Takes items off the pipe at once: parent and helper never both wait for the other to read. None: there is no parent."""
    try:
        while True:
            items.put(connection.recv_bytes())
    except (EOFError, OSError):
        items.put(None)
    except BaseException:
        _end()


def _send(connection: Connection, answers: queue.SimpleQueue[bytes]) -> None:
    """An answer is larger than a pipe holds: the next item does not wait until the parent comes to read it."""
    try:
        while True:
            connection.send_bytes(answers.get())
    except (BrokenPipeError, ConnectionResetError):  # there is no parent
        os._exit(0)
    except BaseException:
        _end()


def _end() -> None:
    """Whatever a thread failed of ends the process, so that the parent, which waits for an answer, sees it."""
    try:
        traceback.print_exc()
    finally:
        os._exit(1)


def _answer(work: Callable[[Any], Any], item: bytes) -> bytes:
    try:
        return pickle.dumps((True, work(pickle.loads(item))), pickle.HIGHEST_PROTOCOL)
    except BaseException as error:  # the parent raises it
        error.add_note("".join(traceback.format_exception(error)))
        try:
            pickle.loads(found := pickle.dumps((False, error)))
        except Exception:  # one that cannot be sent goes as its text
            return pickle.dumps((False, RuntimeError("".join(traceback.format_exception(error)))))
        return found
