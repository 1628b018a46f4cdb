"""Signals and the time limit: saved, the right exit code, and the resumed run is the run that nothing stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import Command, curve, facts_of, steps_logged

from dumbo.trainer.signals import AGAIN

STEPS = 30
WORDS = (
    "run_dir=run", f"trainer.max_steps={STEPS}", "trainer.num_samples=0", "trainer.num_answers=0", "trainer.max_seq_len=128",
    "trainer.save_every=null", "trainer.eval_every=10", "trainer.warmup_steps=4", "trainer.lr=3e-3", "trainer.micro_batch_size=1",
    "tracker=[tensorboard]",
)  # fmt: skip
SLOW = "DUMBO_TEST_SLOW_STEPS"


def slow_steps() -> None:
    """Steps of a twentieth of a second at least, so that a signal finds the loop running."""
    from dumbo.trainer.engine import Engine

    step = Engine.training_step

    def slower(self: Engine, *args: object) -> object:
        time.sleep(float(os.environ[SLOW]))
        return step(self, *args)

    Engine.training_step = slower  # type: ignore[assignment]


def slow_command(folder: Path, *words: str, seconds: float = 0.03) -> Command:
    return Command(folder, *WORDS, *words, prelude=slow_steps, **{SLOW: str(seconds)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    command = Command(folder, *WORDS)
    assert command.wait() == 0, command.said()
    return folder / "run"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGUSR1, 0),
        pytest.param(
            signal.SIGTERM, 143, marks=pytest.mark.full
        ),  # at step 10 in test_a_stop_where_an_evaluation_was_due
        pytest.param(signal.SIGUSR2, 0, marks=pytest.mark.full),
    ],
)
def test_saved_then_the_same_curve(whole: Path, number: signal.Signals, code: int, tmp_path: Path) -> None:
    command, run = slow_command(tmp_path), tmp_path / "run"
    command.until(lambda: steps_logged(run) >= 7)
    command.kill(number)
    assert command.wait(20) == code, command.said()
    stopped = steps_logged(run)
    assert 7 <= stopped < STEPS
    facts = facts_of(run)
    assert facts["status"] == "preempted"
    assert facts["error"] == f"stopped by {number.name}"
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{stopped:06d}"]
    assert f"{number.name}: step-{stopped:06d} is saved" in command.said()
    assert "resume=run" in command.said()
    assert not (run / "model").exists()
    again = Command(tmp_path, *WORDS, "resume=auto")
    assert again.wait() == 0, again.said()
    assert curve(run) == curve(whole)
    assert facts_of(run)["status"] == "finished"


def test_a_second_ctrl_c_gives_up(tmp_path: Path) -> None:
    command, run = slow_command(tmp_path, seconds=5.0), tmp_path / "run"
    command.until(lambda: "eval      step 0" in command.said())
    time.sleep(0.3)
    began = time.monotonic()
    command.kill(signal.SIGINT)
    time.sleep(AGAIN + 0.3)
    command.kill(signal.SIGINT)
    assert command.wait(20) == 130, command.said()
    assert time.monotonic() - began < 4.5, "it waited for the step to end"
    assert not list(run.glob("checkpoints/step-*"))
    assert "Traceback" not in command.said()
    again = Command(tmp_path, *WORDS, "resume=auto")
    assert again.wait() == 0, again.said()


def slow_answers() -> None:
    """Answering after the training takes long, so that a signal finds it."""
    import dumbo.outputs.samples as samples

    ask = samples.ask

    def slower(model: object, *args: object) -> object:
        print("ANSWERING", flush=True)
        time.sleep(2.6)
        return ask(model, *args)  # type: ignore[arg-type]

    samples.ask = slower  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("when", "number", "code"),
    [
        ("before", signal.SIGTERM, 143),
        pytest.param("before", signal.SIGUSR1, 0, marks=pytest.mark.full),
        pytest.param("after", signal.SIGINT, 130, marks=pytest.mark.full),
        ("after", signal.SIGUSR2, 0),
    ],
)
def test_outside_the_loop(whole: Path, when: str, number: signal.Signals, code: int, tmp_path: Path) -> None:
    """Before the first step and after the last one there is nothing to finish: the run ends at once, and goes on."""
    words = ["trainer.num_samples=1", "trainer.max_new_tokens=4"]
    command, run = Command(tmp_path, *WORDS, *words, prelude=slow_answers), tmp_path / "run"
    command.until(lambda: command.said().count("ANSWERING") == (1 if when == "before" else 2))
    command.kill(number)
    assert command.wait(2.5) == code, command.said()
    assert facts_of(run)["status"] == "preempted"
    assert "Traceback" not in command.said()
    again = Command(tmp_path, *WORDS, *words, "resume=auto")
    assert again.wait() == 0, again.said()
    assert curve(run) == curve(whole)


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_copies_of_a_signal_change_no_exit_code(number: signal.Signals, tmp_path: Path) -> None:
    """Until the process is gone: the interpreter ends for a while after all is written."""
    command = [sys.executable, "-m", "dumbo", *WORDS, f"run_dir={tmp_path / 'run'}"]
    said = tmp_path / "said.txt"
    with said.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=tmp_path)
    while "model " not in said.read_text():
        assert process.poll() is None, said.read_text()
        time.sleep(0.01)
    process.send_signal(number)
    while process.poll() is None and facts_of(tmp_path / "run")["status"] == "running":
        time.sleep(0.005)
    while process.poll() is None:
        time.sleep(0.02)  # between the run's end and the process's a default may stand for a moment
        process.send_signal(number)
    assert process.returncode == {signal.SIGUSR1: 0, signal.SIGINT: 130}[number], said.read_text()
    assert facts_of(tmp_path / "run")["status"] == "preempted"


def test_max_time_ends_in_time(whole: Path, tmp_path: Path) -> None:
    """Stopped before the time is up, preempted with exit code 0; again and again the run comes to its end."""
    run = tmp_path / "run"
    stopped = 0
    for _ in range(8):
        began = time.monotonic()
        command = slow_command(tmp_path, "trainer.max_time=6s", "resume=auto", seconds=0.2)
        assert command.wait(30) == 0, command.said()
        assert time.monotonic() - began < (
            12 if "PYTEST_XDIST_WORKER" in os.environ else 6.5
        )  # beside other workers: late
        if facts_of(run)["status"] == "finished":
            break
        assert facts_of(run)["status"] == "preempted"
        assert "max_time: step-" in command.said()
        stopped += 1
    assert stopped, "the time limit stopped nothing"
    assert curve(run) == curve(whole)


def test_a_stop_where_an_evaluation_was_due(whole: Path, tmp_path: Path) -> None:
    """The evaluation that a stop leaves out is made up for on resuming: no row is missing."""
    run = tmp_path / "run"
    command = Command(tmp_path, *WORDS, prelude=stop_at_ten)
    assert command.wait() == 143, command.said()
    assert steps_logged(run) == 10
    again = Command(tmp_path, *WORDS, "resume=auto")
    assert again.wait() == 0, again.said()
    assert curve(run) == curve(whole)


def stop_at_ten() -> None:
    """SIGTERM comes during step 10, whose evaluation is due."""
    from dumbo.trainer.engine import Engine

    step = Engine.training_step

    def stopping(self: Engine, *args: object) -> object:
        if self.state.global_step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    Engine.training_step = stopping  # type: ignore[assignment]
