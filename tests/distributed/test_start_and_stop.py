"""Runs of several ranks as a user starts and stops them: real processes, real signals, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lacking
import pytest
from ranks import curve, environment, facts, torchrun

FAST = ("trainer.num_answers=0", "trainer.num_samples=0", "trainer.eval_at_start=false", "trainer.eval_every=null",
        "trainer.global_batch_size=4", "trainer.micro_batch_size=1", "trainer.max_steps=100", "trainer.save_every=5")  # fmt: skip
LIMIT = 15.0
"""Seconds within which every end must be over."""


class Started:
    """`python -m dumbo` with two ranks."""

    def __init__(
        self,
        folder: Path,
        *words: str,
        launch: str = "ddp",
        path: Path | None = None,
        start: tuple[str, ...] = ("-m", "dumbo"),
    ) -> None:
        self.run = folder / "run"
        own = environment()
        if path is not None:
            own["PYTHONPATH"] = os.pathsep.join([str(path), own["PYTHONPATH"]])
        command = [
            sys.executable,
            *start,
            *FAST,
            f"run_dir={self.run}",
            f"launch={launch}",
            "launch.num_processes=2",
        ]
        self.out = folder / "said.txt"
        with self.out.open("w") as out:
            self.process = subprocess.Popen([*command, *words], env=own, stdout=out, stderr=out, cwd=folder)

    @property
    def said(self) -> str:
        return self.out.read_text()

    def until_step(self, step: int) -> None:
        """Waits until a checkpoint of this step or a later one is there."""
        for _ in range(1200):
            assert self.process.poll() is None, self.said
            if any(int(found.name[5:]) >= step for found in self.run.glob("checkpoints/step-*")):
                return
            time.sleep(0.1)
        raise TimeoutError(self.said)

    def until_said(self, words: str) -> None:
        for _ in range(1200):
            assert self.process.poll() is None, self.said
            if words in self.said:
                return
            time.sleep(0.1)
        raise TimeoutError(self.said)

    def pid(self, rank: int) -> int:
        (file,) = Path(tempfile.gettempdir()).glob(f"dumbo-launch-{self.process.pid}-*/pid-{rank}")
        return int(file.read_text())

    def ends(self) -> tuple[int, float]:
        """(exit code, seconds from now)."""
        began = time.monotonic()
        code = self.process.wait(120)
        return code, time.monotonic() - began


def left_behind(run: Path) -> list[str]:
    """Processes that still name this run in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            held = (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if str(run).encode() in held and state != "Z" and int(entry.name) != os.getpid():
            found.append(entry.name)
    return found


def nothing_left(run: Path) -> None:
    deadline = time.monotonic() + 3
    while (left := left_behind(run)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    assert not list(run.glob(".*attach*"))


SIGNALS = {
    "SIGTERM": (143, "preempted"),
    "SIGINT": (130, "preempted"),
    "SIGUSR1": (0, "preempted"),
    "SIGUSR2": (0, "preempted"),
}


def stopped(folder: Path, name: str, target: str, launch: str) -> Started:
    """A signal: saved, the exit code, nothing left."""
    started = Started(folder, launch=launch)
    started.until_step(5)
    pid = started.process.pid if target == "parent" else started.pid(int(target[-1]))
    os.kill(pid, getattr(signal, name))
    code, seconds = started.ends()
    wanted, status = SIGNALS[name]
    assert code == wanted, started.said
    assert seconds < LIMIT
    assert facts(started.run)["status"] == status
    assert f"stopped   {name}: step-" in started.said
    nothing_left(started.run)
    saved = max(int(found.name[5:]) for found in started.run.glob("checkpoints/step-*"))
    assert curve(started.run)[-1][0] == saved, "the step that is saved is the last one logged"
    return started


def go_on(run: Path) -> None:
    again = subprocess.run(
        [sys.executable, "-m", "dumbo", f"resume={run}"], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert again.returncode == 0, again.stdout + again.stderr


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made: dict[str, Path] = {}

    class Runs(dict[str, Path]):
        def __missing__(self, launch: str) -> Path:
            folder = tmp_path_factory.mktemp(launch)
            started = Started(folder, launch=launch)
            assert started.ends()[0] == 0, started.said
            self[launch] = started.run
            return started.run

    return Runs(made)


def test_a_signal_saves_all_ranks_and_the_run_goes_on(uninterrupted: dict[str, Path], tmp_path: Path) -> None:
    """The joined curve is bitwise that of a run that nothing stopped."""
    go_on(stopped(tmp_path, "SIGTERM", "parent", "ddp").run)
    assert curve(tmp_path / "run") == curve(uninterrupted["ddp"])


@pytest.mark.full
@pytest.mark.parametrize("launch", ["ddp", "fsdp"])
@pytest.mark.parametrize("target", ["parent", "rank0", "rank1"])
@pytest.mark.parametrize("name", list(SIGNALS))
def test_every_signal_to_every_process(
    name: str, target: str, launch: str, uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    started = stopped(tmp_path, name, target, launch)
    if target == "parent" or name == "SIGINT":
        go_on(started.run)
        assert curve(started.run) == curve(uninterrupted[launch])


def test_ranks_tell_the_trackers(tmp_path: Path) -> None:
    """Rank 0 does, once; they get the config with its secrets masked."""
    lacking.needs("tensorboard", "pip install 'dumbo[tensorboard]'")
    started = Started(tmp_path, "trainer.max_steps=4", "trainer.save_every=2", "tracker=[tensorboard]")
    assert started.ends()[0] == 0, started.said
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(started.run / "tensorboard")).Reload()
    assert [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars("loss")] == [
        (step, loss) for step, loss, norm in curve(started.run) if norm is not None
    ]
    assert any(tag.startswith("config") for tag in events.Tags()["tensors"])
    assert events.Scalars("final/train_loss")


SLOW_TRACKER = """
import pathlib, time
class Slow:
    def start(self, run_dir, name, config): self.said = pathlib.Path(run_dir) / "told.txt"
    def log(self, row, step): pass
    def finish(self, status, metrics):
        self.said.write_text(status)
        time.sleep(6)
"""


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.full)])
def test_a_run_that_has_finished_stays_so_while_its_tracker_ends(name: str, tmp_path: Path) -> None:
    """Rank 0 breaks its tracker off, rank 1 waits for it: neither makes the run a preempted one."""
    conf = tmp_path / "mine"
    (conf / "tracker").mkdir(parents=True)
    (conf / "slow_tracker.py").write_text(SLOW_TRACKER)
    (conf / "tracker" / "slow.yaml").write_text("# @package tracker.slow\n_target_: slow_tracker.Slow\n")
    started = Started(tmp_path, f"--config-dir={conf}", "tracker=[slow]", "trainer.max_steps=4", "trainer.save_every=2")
    told = started.run / "told.txt"
    for _ in range(1200):
        assert started.process.poll() is None, started.said
        if told.exists() and told.read_text():
            break
        time.sleep(0.05)
    time.sleep(0.5)
    started.process.send_signal(getattr(signal, name))
    assert started.ends()[0] == 0, started.said
    assert told.read_text() == "finished"
    found = facts(started.run)
    assert found["status"] == "finished"
    assert found["tracker_failures"] == ["Slow could not end: broken off"]
    nothing_left(started.run)


def test_a_killed_rank_ends_the_run(tmp_path: Path) -> None:
    started = Started(tmp_path)
    started.until_step(5)
    os.kill(started.pid(1), signal.SIGKILL)
    code, seconds = started.ends()
    assert code == 1
    assert seconds < LIMIT
    assert started.said.rstrip().endswith("Rank 1 was killed by SIGKILL. The machine may be out of memory.")
    assert facts(started.run)["status"] == "failed"
    nothing_left(started.run)


def at_start_of_ranks(folder: Path, code: str) -> None:
    """What every rank's Python runs before anything of ours; `rank` is its number."""
    (folder / "sitecustomize.py").write_text(
        "import os, signal, threading, time\n"
        "rank = os.environ.get('RANK')\n"
        f"if rank is not None and 'DUMBO_LAUNCH_FOLDER' in os.environ:\n    {code}\n"
    )


def test_ranks_that_die_before_they_can_say_a_word(tmp_path: Path) -> None:
    at_start_of_ranks(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    started = Started(tmp_path, path=tmp_path)
    assert started.ends()[0] == 1
    said = "was killed by SIGKILL. The machine may be out of memory."
    assert started.said.rstrip().endswith(said)
    assert facts(started.run)["status"] == "failed"
    nothing_left(started.run)


@pytest.mark.full
@pytest.mark.parametrize("after", [0, 3])
def test_one_rank_dies_before_it_can_say_a_word(after: float, tmp_path: Path) -> None:
    """Before anybody looked, or while the other waits for it, and hears nothing."""
    at_start_of_ranks(tmp_path, f"rank == '1' and (time.sleep({after}), os.kill(os.getpid(), signal.SIGKILL))")
    started = Started(tmp_path, path=tmp_path)
    code, seconds = started.ends()
    assert code == 1
    assert seconds < after + 10 + LIMIT, "torch's launcher alone would take half a minute more"
    assert started.said.rstrip().endswith("Rank 1 was killed by SIGKILL. The machine may be out of memory.")
    nothing_left(started.run)


@pytest.mark.full
def test_a_rank_that_is_done_and_does_not_leave(tmp_path: Path) -> None:
    at_start_of_ranks(tmp_path, "rank == '1' and threading.Thread(target=time.sleep, args=(10_000,)).start()")
    sooner = (
        "import dumbo.launch.ranks as ranks; ranks.LEAVING = 4.0; from dumbo.cli import main; raise SystemExit(main())"
    )
    started = Started(tmp_path, "trainer.max_steps=3", path=tmp_path, start=("-c", sooner))
    code, _ = started.ends()
    assert code == 0, started.said
    assert facts(started.run)["status"] == "finished"
    assert "ranks     done, but not gone a minute later, and ended: 1" in started.said
    nothing_left(started.run)


@pytest.mark.full
def test_ctrl_c_to_all_processes_at_once_saves(tmp_path: Path) -> None:
    """As a scheduler does it; what the parent passes on is no second one."""
    started = Started(tmp_path)
    started.until_step(5)
    for pid in (started.pid(0), started.pid(1), started.process.pid):
        os.kill(pid, signal.SIGINT)
    assert started.ends()[0] == 130
    assert "stopped   SIGINT: step-" in started.said
    nothing_left(started.run)


def test_ctrl_c_while_the_other_machine_has_not_come(tmp_path: Path) -> None:
    started = Started(
        tmp_path, "launch.num_nodes=2", "launch.rdzv_endpoint=localhost:29671", "launch.start_timeout=100"
    )
    started.until_said("4 on the CPU, 2 machines")
    time.sleep(1)
    started.process.send_signal(signal.SIGINT)
    code, seconds = started.ends()
    assert code == 130, started.said
    assert seconds < LIMIT
    assert facts(started.run)["status"] == "preempted"


@pytest.mark.full
def test_a_killed_parent_takes_its_ranks_along(tmp_path: Path) -> None:
    started = Started(tmp_path)
    started.until_step(5)
    ranks = [started.pid(0), started.pid(1)]
    started.process.kill()
    started.ends()
    time.sleep(1)
    assert not set(map(str, ranks)) & set(left_behind(started.run))
    go_on(started.run)
    nothing_left(started.run)


@pytest.mark.full
def test_a_rank_that_hangs_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\nif os.environ.get('RANK') == '1':\n    time.sleep(1000)\n"
    )
    started = Started(tmp_path, "launch.start_timeout=15", path=tmp_path)
    code, seconds = started.ends()
    assert code == 1
    assert "not ready after 15 s" in started.said
    assert "launch.start_timeout=SECONDS" in started.said
    assert seconds < 15 + 15 + LIMIT, "importing, the limit, the end"
    nothing_left(started.run)


@pytest.mark.full
def test_a_rank_that_does_not_answer(tmp_path: Path) -> None:
    started = Started(tmp_path, "launch.timeout=4s")
    started.until_step(5)
    os.kill(started.pid(1), signal.SIGSTOP)
    code, seconds = started.ends()
    assert code == 1
    assert "Another rank did not answer" in started.said
    assert seconds < LIMIT
    nothing_left(started.run)


CRASHING = """
from dataclasses import dataclass
import os
from dumbo.model.tiny import Tiny

@dataclass(frozen=True, kw_only=True)
class Crashing(Tiny):
    def load_model(self, tokenizer, **kwargs):
        if os.environ.get("RANK") == "1":
            raise RuntimeError("the disk of rank 1 is gone")
        return super().load_model(tokenizer, **kwargs)
"""


@pytest.mark.full
def test_an_exception_in_one_rank(tmp_path: Path) -> None:
    conf = tmp_path / "mine"
    (conf / "model").mkdir(parents=True)
    (conf / "crashing.py").write_text(CRASHING)
    (conf / "model" / "crashing.yaml").write_text("_target_: crashing.Crashing\n")
    started = Started(tmp_path, f"--config-dir={conf}", "model=crashing", "trainer.max_seq_len=512")
    code, _ = started.ends()
    assert code == 1
    assert "RuntimeError: the disk of rank 1 is gone" in started.said
    assert "(rank 1)" in started.said
    assert "The whole traceback is in run/rank-1.log" in started.said
    assert "Traceback" not in started.said
    assert "the disk of rank 1 is gone" in (started.run / "rank-1.log").read_text()
    nothing_left(started.run)


@pytest.mark.full
def test_four_runs_side_by_side(tmp_path: Path) -> None:
    started = []
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        started.append(Started(tmp_path / str(number), "trainer.max_steps=4"))
    assert [one.process.wait(300) for one in started] == [0, 0, 0, 0], [one.said for one in started]
    assert len({json.dumps(curve(one.run)) for one in started}) == 1


@pytest.mark.full
def test_torchrun_and_accelerate_launch_by_hand(tmp_path: Path) -> None:
    """One folder each, and the numbers of `launch=ddp`."""
    few = [*FAST, "trainer.max_steps=6"]
    done = torchrun(2, "-m", "dumbo", *few, f"run_dir={tmp_path / 'torchrun'}")
    assert done.returncode == 0, done.stdout + done.stderr
    words = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m", "dumbo", *few, "launch=ddp"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *words, f"run_dir={tmp_path / 'accelerate'}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    started = Started(tmp_path, "trainer.max_steps=6")
    assert started.ends()[0] == 0
    for name in ("torchrun", "accelerate"):
        assert curve(tmp_path / name) == curve(started.run)
        assert facts(tmp_path / name)["parallel"] == "DDP"
        assert facts(tmp_path / name)["status"] == "finished"
        assert (tmp_path / name / "model" / "README.md").is_file()
        assert "2 on the CPU" in (tmp_path / name / "dumbo.log").read_text()


@pytest.mark.full
def test_torchrun_says_once_what_is_wrong(tmp_path: Path) -> None:
    done = torchrun(2, "-m", "dumbo", *FAST, "launch=single", f"run_dir={tmp_path / 'run'}")
    assert done.returncode != 0
    assert "launch=single is one process" in done.stderr
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    done = torchrun(2, "-m", "dumbo", *FAST, f"run_dir={tmp_path / 'taken'}")
    assert done.returncode != 0
    assert done.stderr.count("is not empty, and no run's") == 1


@pytest.mark.full
def test_max_time_ends_all_ranks(tmp_path: Path) -> None:
    """Saved by then; what comes after it, the ranks' and Python's ending, takes as long as the machine's other work lets it."""
    began = time.time()
    started = Started(tmp_path, "trainer.max_steps=100000", "trainer.save_every=1000", "trainer.max_time=30s")
    code, _ = started.ends()
    assert code == 0, started.said
    saved = max(file.stat().st_mtime for file in started.run.glob("checkpoints/step-*/manifest.json"))
    assert 10 < saved - began < 33
    assert time.time() - saved < 15
    assert facts(started.run)["status"] == "preempted"
    assert "stopped   max_time: step-" in started.said
    nothing_left(started.run)
