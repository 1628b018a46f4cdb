"""Who hears signals, what they turn into, and when the time is up."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dumbo.errors import Stopped
from dumbo.launch.world import World
from dumbo.trainer.signals import AGAIN, EXIT_CODES, StopRequests, interruptible
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


def test_outside_the_loop_a_copy_does_not_break_off_what_the_first_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that started this one passes on what both have heard, while trackers say their last words."""
    import dumbo.trainer.signals as module

    clock = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    said = []
    with pytest.raises(Stopped), interruptible():  # noqa: PT012
        try:
            send("SIGINT")
        finally:
            send("SIGINT")
            said.append("last words")
            clock[0] += AGAIN
            send("SIGINT")
            said.append("never")
    assert said == ["last words"]


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


def test_a_second_ctrl_c_and_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler tells all processes of a job, and they each other: what comes within a second is the same Ctrl-C."""
    import dumbo.trainer.signals as module

    clock = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    requests = StopRequests()
    heard = []
    with pytest.raises(KeyboardInterrupt), requests.listening():  # noqa: PT012
        for name in (
            "SIGTERM",
            "SIGTERM",
            "SIGINT",
            "SIGINT",
            "SIGINT",
            "SIGUSR1",
            "later",
            "SIGTERM",
            "SIGINT",
            "SIGTERM",
        ):
            if name == "later":
                clock[0] += AGAIN
                continue
            send(name)
            heard.append(name)
    assert heard == ["SIGTERM", "SIGTERM", "SIGINT", "SIGINT", "SIGINT", "SIGUSR1", "SIGTERM"]


def test_another_thread_changes_nothing() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with interruptible(), StopRequests().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


CPU = SimpleNamespace(device=torch.device("cpu"))


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
    callback.on_step_begin(CPU, state, wanted)
    clock[0] += step
    callback.on_step_end(CPU, state, wanted)
    assert wanted.should_training_stop == wanted.should_save == wanted.should_log == stops
    assert wanted.should_evaluate != stops
    assert requests.reason == ("max_time" if stops else None)


class Gpu:
    """A clock, and a GPU that works off what is launched, later. Stands for torch.cuda in `stop.py`."""

    def __init__(self) -> None:
        self.now = self.idle_at = 0.0

    def launch(self, launching: float, computing: float) -> None:
        self.now += launching
        self.idle_at = max(self.idle_at, self.now) + computing

    def synchronize(self, device: Any = None) -> None:
        self.now = max(self.now, self.idle_at)

    def current_stream(self, device: Any) -> None: ...

    def Event(self) -> Any:
        gpu = self

        class Event:
            def record(self, stream: Any) -> None:
                self.at = gpu.idle_at

            def synchronize(self) -> None:
                gpu.now = max(gpu.now, self.at)

        return Event()


@pytest.mark.parametrize("log_every", [1, 10, 1000])
@pytest.mark.parametrize("computing", [0.5, 3.0])
def test_a_gpu_that_lags_behind_is_in_time(log_every: int, computing: float, monkeypatch: Any) -> None:
    """Steps are launched in a hundredth of what they take, and only a logged row waits for them."""
    import dumbo.trainer.stop as module

    gpu, saving, limit = Gpu(), 1.0, 100.0
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: gpu.now))
    monkeypatch.setattr(module.torch, "cuda", gpu)
    arguments, wanted = SimpleNamespace(device=torch.device("cuda")), control()
    callback = StopCallback(StopRequests(), 0.0, limit, lambda: saving, lambda: 0.0, World())
    for step in range(1, 10**6):
        callback.on_step_begin(arguments, None, wanted)
        gpu.launch(computing / 100, computing)
        callback.on_step_end(arguments, SimpleNamespace(global_step=step, max_steps=10**6), wanted)
        if wanted.should_training_stop:
            break
        if step % log_every == 0:
            gpu.synchronize()
    gpu.synchronize()
    ended = gpu.now + saving
    assert ended <= limit
    assert ended >= limit - 0.02 * limit - saving - 3 * computing, "it could have made more steps"


def test_a_gpu_never_waits_for_the_clock(monkeypatch: Any) -> None:
    """There is always a step that it has not ended."""
    import dumbo.trainer.stop as module

    gpu = Gpu()
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: gpu.now))
    monkeypatch.setattr(module.torch, "cuda", gpu)
    arguments, state = SimpleNamespace(device=torch.device("cuda")), SimpleNamespace(global_step=1, max_steps=100)
    callback = StopCallback(StopRequests(), 0.0, 1e6, float, float, World())
    for _ in range(50):
        callback.on_step_begin(arguments, state, control())
        gpu.launch(0.01, 1.0)
        callback.on_step_end(arguments, state, control())
        assert gpu.idle_at > gpu.now
    assert gpu.idle_at == pytest.approx(50.01)


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
