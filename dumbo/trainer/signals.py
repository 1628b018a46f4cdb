"""What asks a run to stop, and what becomes of it.

    SIGINT   Ctrl-C                  exit code 130
    SIGTERM                          exit code 143
    SIGUSR1, SIGUSR2, max_time       status preempted, exit code 0

In the training loop a handler only sets a flag: the step is finished, saved, and the loop left (`stop.py`); a
second SIGINT, a second later, gives up on saving. Before and after the loop there is nothing to finish: the run stops at once.
Imports nothing heavy: `launch` listens before transformers is loaded.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dumbo.errors import Stopped
from dumbo.launch.world import World

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 0, "SIGUSR2": 0, "max_time": 0}
AGAIN = 1.0
"""Seconds after a SIGINT from which on another one is a second one: a scheduler tells every process of a job, and each process
passes on what it hears."""
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
"""What a scheduler sends some time before it ends a job."""


class StopRequests:
    """What asked the loop to stop, if anything did.

    Attributes:
        reason: what this process heard.
        agreed: what the ranks agreed on, where there are several.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.agreed: str | None = None
        self._interrupted: float | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals for the length of the block."""
        with handled_by(self._handle):
            yield

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self.reason = name
        if name == "SIGINT":
            now = time.monotonic()
            if self._interrupted is None:
                self._interrupted = now
            elif now - self._interrupted >= AGAIN:
                raise KeyboardInterrupt

    def settle(self, world: World) -> None:
        """After the loop: what any rank heard, all of them act on."""
        heard = [reason for reason in world.gather(self.agreed or self.reason) if reason is not None]
        if heard:
            self.agreed = min(heard, key=list(EXIT_CODES).index)

    def raise_if_any(self) -> None:
        """Raises Stopped when something asked."""
        reason = self.agreed or self.reason
        if reason is not None:
            raise Stopped(reason, EXIT_CODES[reason])


@contextmanager
def interruptible() -> Iterator[None]:
    """Stops what runs in the block at the first signal.

    The handler raises KeyboardInterrupt, which no library catches with its errors; here it becomes what it was. What comes
    within a second after that is the same signal, passed on, and must not break off what the first one ends.

    Raises:
        Stopped: with the signal's name and exit code.
    """
    heard: list[str] = []
    stopped = -AGAIN

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        now = time.monotonic()
        if now - stopped < AGAIN:
            return
        stopped = now
        heard.append(signal.Signals(number).name)
        raise KeyboardInterrupt

    try:
        with handled_by(handle):
            yield
    except KeyboardInterrupt:
        name = heard[0] if heard else "SIGINT"
        raise Stopped(name, EXIT_CODES[name]) from None


@contextmanager
def undisturbed(seconds: float = 10.0) -> Iterator[None]:
    """Passes signals over while the end of what was stopped is written: who passes on what all have heard, and the launcher that
    ends the other ranks, may be later than that.

    Args:
        seconds: so long; a SIGINT that comes a second after the beginning is somebody's who has waited enough.

    Raises:
        KeyboardInterrupt: at a signal after that.
    """
    began = time.monotonic()

    def handle(number: int, frame: FrameType | None) -> None:
        passed = time.monotonic() - began
        if passed >= min(seconds, AGAIN if number == signal.SIGINT else seconds):
            raise KeyboardInterrupt

    with handled_by(handle):
        yield


@contextmanager
def broken_off(seconds: float) -> Iterator[None]:
    """`undisturbed`, and no longer than that: then what is in the block is broken off, signal or not. The main thread's alone.

    Raises:
        KeyboardInterrupt: the time is up.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield
        return
    watched = threading.Lock()
    over = False

    def ring() -> None:
        with watched:
            if not over and main.ident is not None:
                signal.pthread_kill(main.ident, signal.SIGTERM)  # its own, so that a wait of the main thread ends

    clock = threading.Timer(seconds, ring)
    clock.daemon = True
    with undisturbed(seconds):
        clock.start()
        try:
            yield
        finally:
            clock.cancel()
            with watched:
                over = True


@contextmanager
def passed_over() -> Iterator[list[str]]:
    """Notes signals, and nothing more: what is in the block has been done already, whatever is asked of it now."""
    heard: list[str] = []
    with handled_by(lambda number, frame: heard.append(signal.Signals(number).name)):
        yield heard


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, `handler` takes every signal that asks a run to stop. Only the main thread can; in another one nothing changes.

    Whoever starts this process may have it begin with some of them blocked (`slurm/task.py`): they are kept for the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    acted: set[int] = set()

    def take(number: int, frame: FrameType | None) -> None:
        if _changing.now:
            _changing.waiting.append(number)
        else:
            acted.add(number)
            handler(number, frame)

    numbers = [getattr(signal, name) for name in EXIT_CODES if hasattr(signal, name)]
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, ())  # as it is
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        with _changing:
            for number in numbers:
                signal.signal(number, take)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        yield
    finally:
        with _changing:
            signal.pthread_sigmask(signal.SIG_SETMASK, kept)
            for number in reversed(numbers):  # SIGINT last: Python's own handler raises
                earlier = before[number]
                signal.signal(number, earlier if earlier is not None else signal.SIG_DFL)
            copies = {number for number in acted if before[number] == signal.SIG_DFL}  # which would end the process
            _changing.waiting = [number for number in _changing.waiting if number not in copies]


class _Changing:
    """The main thread's handlers are being changed: what comes meanwhile waits for the new ones. One that raised in the middle would
    leave some of the others behind.
    """

    def __init__(self) -> None:
        self.now, self.waiting = False, list[int]()

    def __enter__(self) -> None:
        self.now = True

    def __exit__(self, *error: object) -> None:
        came, self.waiting, self.now = self.waiting, [], False
        for number in came:
            signal.raise_signal(number)


_changing = _Changing()
