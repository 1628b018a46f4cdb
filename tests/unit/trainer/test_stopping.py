"""Who hears signals, what they turn into, and when the time is up."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from dumbo.errors import Stopped
from dumbo.launch.world import World
from dumbo.trainer.signals import EXIT_CODES, StopRequests, interruptible
from dumbo.trainer.stop import StopCallback


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_outside_the_loop_a_signal_stops_at_once(name: str) -> None:
    before = signal.getsignal(getattr(signal, name))
    went_on = False
    with pytest.raises(Stopped) as stopped, interruptible():  # noqa: PT012
        send(name)
        went_on = True
    assert not went_on
    assert (stopped.value.signal_name, stopped.value.exit_code) == (name, EXIT_CODES[name])
    assert signal.getsignal(getattr(signal, name)) is before


def test_no_library_can_swallow_it() -> None:
    swallowed = False
    with pytest.raises(Stopped), interruptible():  # noqa: PT012
        try:
            send("SIGTERM")
        except Exception:
            swallowed = True
    assert not swallowed, "a library's `except Exception` would go on"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_in_the_loop_a_signal_is_only_noted(name: str) -> None:
    requests = StopRequests()
    with interruptible():
        with requests.listening():
            send(name)
            assert requests.reason == name
        with pytest.raises(Stopped):
            requests.raise_if_any()


def test_a_second_ctrl_c_and_only_that() -> None:
    requests = StopRequests()
    heard = []
    with pytest.raises(KeyboardInterrupt), requests.listening():  # noqa: PT012
        for name in ("SIGTERM", "SIGTERM", "SIGINT", "SIGUSR1", "SIGINT", "SIGTERM"):
            send(name)
            heard.append(name)
    assert heard == ["SIGTERM", "SIGTERM", "SIGINT", "SIGUSR1"]


def test_another_thread_changes_nothing() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with interruptible(), StopRequests().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def control() -> Any:
    return SimpleNamespace(should_save=False, should_log=False, should_training_stop=False, should_evaluate=True)


@pytest.mark.parametrize(
    ("elapsed", "step", "save", "evaluate", "stops"),
    [
        (10, 1, 1, 1, False), (94, 1, 0.1, 0.1, False), (96, 1, 0.1, 0.1, True),  # 2% of 100 s in hand, and two steps
        (50, 30, 1, 1, True), (50, 1, 30, 1, True), (50, 1, 1, 60, True), (101, 0, 0, 0, True),
    ],
)  # fmt: skip
def test_time_for_another_step(
    elapsed: float, step: float, save: float, evaluate: float, stops: bool, monkeypatch: Any
) -> None:
    import dumbo.trainer.stop as module

    clock = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: clock[0]))
    requests = StopRequests()
    callback = StopCallback(requests, 1000.0 - elapsed, 100.0, lambda: save, lambda: evaluate, World())
    state, wanted = SimpleNamespace(global_step=3, max_steps=10), control()
    callback.began -= -step  # the clock moves on by the step
    callback.on_step_begin(None, state, wanted)
    clock[0] += step
    callback.on_step_end(None, state, wanted)
    assert wanted.should_training_stop == wanted.should_save == wanted.should_log == stops
    assert wanted.should_evaluate != stops
    assert requests.reason == ("max_time" if stops else None)


def test_without_a_limit_nothing_stops() -> None:
    callback, wanted = StopCallback(StopRequests(), 0.0, None, lambda: 1e9, lambda: 1e9, World()), control()
    callback.on_step_begin(None, None, wanted)
    callback.on_step_end(None, SimpleNamespace(global_step=1, max_steps=2), wanted)
    assert not wanted.should_training_stop


def test_the_last_step_is_not_stopped_but_ends() -> None:
    requests = StopRequests()
    requests.reason = "SIGTERM"
    callback, wanted = StopCallback(requests, 0.0, None, float, float, World()), control()
    callback.on_step_end(None, SimpleNamespace(global_step=9, max_steps=9), wanted)
    assert not wanted.should_training_stop, "Trainer itself ends, and saves, at the last step"
