"""Trackers get every logged number, read back here with each library's own reader."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lacking
import pytest

import dumbo
from dumbo.errors import RunFailed, Stopped, UserError
from dumbo.launch.world import World
from dumbo.tracker.tensorboard import TensorBoard
from dumbo.tracker.tracking import tracking
from dumbo.trainer.signals import interruptible

SHORT = [
    "dataset.limit=40", "trainer.max_steps=2", "trainer.warmup_steps=0", "trainer.num_answers=0", "trainer.num_samples=0",
    "trainer.save_every=null", "trainer.eval_every=null", "trainer.global_batch_size=2", "trainer.micro_batch_size=2",
    "verify.mode=off", "run_dir=run",
]  # fmt: skip


def needs(extra: str) -> None:
    """CI has them: tensorboard in .ci/run, all of them in .ci/full, which is where the tests marked full run."""
    lacking.needs(extra, f"pip install 'dumbo[{extra}]'")


def trained(tmp_path: Path, *words: str) -> tuple[dict[int, float], dict[str, object]]:
    """A run of two steps: its losses by step, and its final metrics."""
    dumbo.run([*words, *SHORT])
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}, json.loads(
        (tmp_path / "run" / "run.json").read_text()
    )["metrics"]


def test_tensorboard(tmp_path):
    needs("tensorboard")
    losses, metrics = trained(tmp_path, "tracker=[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {e.step: e.value for e in events.Scalars("loss")} == pytest.approx(losses, rel=1e-6)
    assert len(losses) == 2
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = {row["step"]: row["lr"] for row in rows if "lr" in row}
    assert {e.step: e.value for e in events.Scalars("lr")} == pytest.approx(rates, rel=1e-6)
    assert events.Scalars("final/train_loss")[0].value == pytest.approx(metrics["train_loss"], rel=1e-6)
    assert events.Scalars("eval_loss")
    assert any(tag.startswith("config") for tag in events.Tags()["tensors"])


def test_a_failed_run_closes_its_tracker(tmp_path, monkeypatch):
    needs("tensorboard")
    ended: list[str] = []
    monkeypatch.setattr(TensorBoard, "finish", lambda self, status, metrics: ended.append(status))
    with pytest.raises(UserError):
        dumbo.run(["tracker=[tensorboard]", "patch=[lora]", "patch.lora.target_modules=[nothing]", *SHORT])
    assert ended == ["failed"]


def test_a_refused_resume_starts_no_tracker(tmp_path, monkeypatch):
    """And one that goes on has its final numbers, not those of the process before."""
    said: list[object] = []
    monkeypatch.setattr(TensorBoard, "start", lambda self, folder, name, config: said.append("start"))
    monkeypatch.setattr(TensorBoard, "log", lambda self, numbers, step: None)
    monkeypatch.setattr(
        TensorBoard, "finish", lambda self, status, metrics: said.append((status, metrics.get("steps")))
    )
    needs("tensorboard")
    words = [word for word in SHORT if not word.startswith(("trainer.max_steps", "run_dir"))]
    dumbo.run(
        [
            "tracker=[tensorboard]",
            *words,
            "trainer.num_epochs=2",
            "dataset.limit=12",
            "trainer.packing=false",
            "run_dir=run",
        ]
    )
    assert said == ["start", ("finished", 12)]
    with pytest.raises(UserError, match="past its new end"):
        dumbo.run(["resume=run", "trainer.num_epochs=1", "trainer.save_every=1"])
    assert said == ["start", ("finished", 12)]
    dumbo.run(["resume=run", "trainer.num_epochs=3"])
    assert said == ["start", ("finished", 12), "start", ("finished", 18)]


def test_a_tracker_that_cannot_log_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    needs("tensorboard")

    def refuses(self, numbers, step):
        raise ConnectionError("Connection refused")

    ended: list[str] = []
    monkeypatch.setattr(TensorBoard, "log", refuses)
    monkeypatch.setattr(TensorBoard, "finish", lambda self, status, metrics: ended.append(status))
    losses, _ = trained(tmp_path, "tracker=[tensorboard]")
    assert len(losses) == 2
    said = "TensorBoard could not log: ConnectionError: Connection refused: it gets no more rows"
    assert capsys.readouterr().out.count(said) == 1
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["status"] == "finished"
    assert facts["tracker_failures"] == [said]
    assert ended == ["finished"], "it may have come back"


def test_a_tracker_that_cannot_start_is_named(tmp_path, monkeypatch):
    """And is no lost rank, however alike they sound."""
    needs("tensorboard")

    def refuses(self, folder, name, config):
        raise ConnectionError("Connection refused")

    monkeypatch.setattr(TensorBoard, "start", refuses)
    with pytest.raises(RunFailed, match=r"^TensorBoard could not start: ConnectionError: Connection refused"):
        dumbo.run(["tracker=[tensorboard]", *SHORT])


class Slow:
    """Gets a signal while it ends."""

    def __init__(self, told: list[str], number: int) -> None:
        self.told, self.number = told, number

    def finish(self, status: str, numbers: dict[str, float]) -> None:
        os.kill(os.getpid(), self.number)
        self.told.append(status)


def tracked(trackers: list[Any]) -> Any:
    said: list[str] = []
    console = SimpleNamespace(row=lambda label, text: said.append(text), log=lambda text: None)
    return SimpleNamespace(
        to_track=([], {}), trackers=trackers, mute=[], facts={}, resuming=False, world=World(), console=console, said=said,
        update=lambda **facts: None,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_tracker_is_told_of_the_end_whatever_comes_meanwhile(number: int) -> None:
    """Where a rank fails, torch's launcher sends SIGTERM to the one that tells the trackers."""
    told: list[str] = []
    run = tracked([Slow(told, number), Slow(told, number)])
    with pytest.raises(RuntimeError, match="the other rank"), interruptible(), tracking(run):
        raise RuntimeError("the other rank is gone")
    assert told == ["failed", "failed"]
    assert run.said == []


def test_a_tracker_that_takes_too_long_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to send another signal for it; the next one has its own seconds."""
    monkeypatch.setattr("dumbo.tracker.tracking.LAST_WORDS", 0.3)
    told: list[str] = []

    class Hangs:
        def finish(self, status: str, numbers: dict[str, float]) -> None:
            time.sleep(60)

    run = tracked([Hangs(), Slow(told, signal.SIGTERM)])
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="the other rank"), interruptible(), tracking(run):
        raise RuntimeError("the other rank is gone")
    assert time.monotonic() - began < 30
    assert told == ["failed"]
    assert run.said == ["Hangs could not end: broken off"]
    time.sleep(0.5)  # a clock that went on would end this process
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_run_that_has_finished_stays_so_when_its_tracker_is_broken_off() -> None:
    told: list[str] = []
    run = tracked([Slow(told, signal.SIGINT), Slow(told, 0)])
    with interruptible(), tracking(run):
        pass
    assert told == ["finished"]
    assert run.said == ["Slow could not end: broken off"]


def test_nor_do_copies_of_the_signal_while_that_is_recorded() -> None:
    told: list[str] = []
    run = tracked([Slow(told, signal.SIGTERM)])
    run.update = lambda **facts: os.kill(os.getpid(), signal.SIGTERM)
    with interruptible(), tracking(run):
        pass
    assert run.said == ["Slow could not end: broken off"]


def test_the_launchers_sigterm_is_no_preemption(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a rank: another one failed, unless the launching process has heard a signal and marked it."""
    from dumbo.launch.forwarding import Forwarding

    forwarding, told = Forwarding(tmp_path), []

    def ends_by_sigterm() -> None:
        with interruptible(), tracking(tracked([Slow(told, 0)])):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    for asked in (False, True):
        with monkeypatch.context() as patched:
            patched.setenv("DUMBO_LAUNCH_FOLDER", str(tmp_path))
            forwarding._heard += [signal.SIGTERM] * asked
            forwarding.pass_on([])
            with pytest.raises(Stopped):
                ends_by_sigterm()
    with pytest.raises(Stopped):
        ends_by_sigterm()
    assert told == ["failed", "preempted", "preempted"], "the last one, of one process, has no launcher"


def test_none_is_the_default(tmp_path):
    from dumbo.tracker.none import NoTracker

    tracker = NoTracker()
    tracker.start(tmp_path, "name", {})
    tracker.log({"loss": 1.0}, 1)
    tracker.finish("finished", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_missing_extra_ends_with_what_to_install(name, monkeypatch, capsys):
    from dumbo import cli

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module, *rest: None if module == name else real(module, *rest)
    )
    assert cli.main([f"tracker=[{name}]", *SHORT]) == 2
    err = capsys.readouterr().err
    assert f"{name} is not installed" in err
    assert f"pip install 'dumbo[{name}]'" in err


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Records of a .wandb file: 7 bytes, then LevelDB's log format (blocks of 32 KiB; checksum, length, part of a record)."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        if kind == 0:
            place += room
            continue
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@pytest.mark.full
def test_wandb_offline(tmp_path, monkeypatch):
    needs("wandb")
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    losses, metrics = trained(tmp_path, "tracker=[wandb]", "tracker.wandb.mode=offline", "tracker.wandb.tags=[a]")
    from wandb.proto import wandb_internal_pb2

    seen: dict[int, float] = {}
    summary: dict[str, float] = {}
    for data in wandb_records(next((tmp_path / "run").rglob("*.wandb")).read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        history = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if "loss" in history:
            seen[int(history["_step"])] = history["loss"]
        for item in record.summary.update:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    assert seen == pytest.approx(losses)
    assert summary["final/train_loss"] == pytest.approx(metrics["train_loss"])
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


@pytest.mark.full
def test_wandb_without_a_key_says_what_to_write(tmp_path, monkeypatch):
    needs("wandb")
    from dumbo.tracker.wandb import Wandb

    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"wandb could not start[\s\S]*tracker\.wandb\.mode=offline"):
        Wandb().start(tmp_path, "name", {})


@pytest.mark.full
def test_mlflow_in_the_runs_folder(tmp_path, monkeypatch):
    needs("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    losses, metrics = trained(tmp_path, "tracker=[mlflow]", "tracker.mlflow.name=mine")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dumbo")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "mine"
    assert {m.step: m.value for m in client.get_metric_history(run.info.run_id, "loss")} == pytest.approx(losses)
    assert run.data.metrics["final/train_loss"] == pytest.approx(metrics["train_loss"])
    assert run.data.params["trainer.max_steps"] == "2"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.full
def test_trackio(tmp_path, monkeypatch, capfd):
    needs("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    losses, metrics = trained(tmp_path, "tracker=[trackio]", "tracker.trackio.name=mine")
    out, err = capfd.readouterr()
    assert "\x1b" not in out + err, "the library's own words go nowhere near a pipe"
    assert "rackio" not in out
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = [run for run in trackio.Api().runs("dumbo") if run.name == "mine"]
    rows = SQLiteStorage.get_logs("dumbo", "mine", run_id=run.id)
    assert run.config["trainer"]["max_steps"] == 2
    assert {int(row["step"]): row["loss"] for row in rows if row.get("loss") is not None} == pytest.approx(losses)
    assert any(row.get("final/train_loss") == pytest.approx(metrics["train_loss"]) for row in rows)


def test_a_missing_extra_is_a_skip_here_and_a_failure_in_ci(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    monkeypatch.delenv("DUMBO_TEST_STRICT", raising=False)
    with pytest.raises(pytest.skip.Exception, match="mlflow is not installed"):
        needs("mlflow")
    monkeypatch.setenv("DUMBO_TEST_STRICT", "1")
    with pytest.raises(
        pytest.fail.Exception, match=r"CI must have it: mlflow is not installed \(pip install 'dumbo\[mlflow\]'\)"
    ):
        needs("mlflow")
