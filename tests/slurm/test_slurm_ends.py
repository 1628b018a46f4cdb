"""How jobs in a real SLURM end and come back: time limit, preemption, a lost node, cancelling, nobody watching."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, kill, processes_of
from processes import curve, rows_of, steps_logged
from test_slurm_jobs import SMALL
from watched import Watched, facts_of, on_the_command_line

import dumbo
from dumbo.sweep.ledger import Ledger

pytestmark = pytest.mark.full
STEPS = 1500
LONG = (*SMALL, f"trainer.max_steps={STEPS}", "trainer.global_batch_size=2", "trainer.micro_batch_size=1")
"""Half a minute and more."""
PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
SLOW = (f"--config-dir={PLUGINS}", "patch=[slow]")
LASTING = (
    *SMALL,
    "trainer.max_steps=600",
    "trainer.global_batch_size=2",
    "trainer.micro_batch_size=1",
    "patch.slow.seconds=0.1",
)
"""Two minutes with SLOW, on any machine: for time limits, which SLURM keeps in minutes."""
SAVING = (
    *SMALL,
    "trainer.max_steps=300",
    "trainer.global_batch_size=2",
    "trainer.micro_batch_size=1",
    "trainer.save_every=20",
)
"""As long, for what must go on from a checkpoint that nobody asked for."""


def alone(folder: Path, words: Sequence[str] = LONG) -> list[tuple[Any, ...]]:
    """The curve of the same run, uninterrupted, in this process."""
    dumbo.run([*words, "launch=single", f"run_dir={folder / 'alone'}"])
    return curve(folder / "alone")


def until_steps(sweep: Watched, steps: int, number: int = 0) -> Path:
    sweep.until(lambda: any(sweep.folder.glob(f"{number:03d}*/metrics.jsonl")))
    run = sweep.run(number)
    sweep.until(lambda: steps_logged(run) >= steps)
    return run


def test_time_limit(cluster: Cluster, tmp_path: Path, stop_left: list[Watched]) -> None:
    limits = ("hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=30")
    sweep = Watched(tmp_path, *SLOW, *LASTING, *limits)
    stop_left.append(sweep)
    assert sweep.wait() == 0, sweep.said + sweep.logs()
    (row,) = sweep.rows()
    assert row["state"] == "done"
    assert row["attempt"] > 1, "the limit came before its end"
    assert "Back into the queue: time limit" in sweep.logs()
    assert curve(sweep.run(0)) == alone(tmp_path, [word for word in LASTING if "slow" not in word])


def test_a_time_limit_that_is_the_last_is_a_failure(cluster: Cluster, tmp_path: Path, stop_left: list[Watched]) -> None:
    sweep = Watched(
        tmp_path,
        *SLOW,
        *LASTING,
        "hydra.launcher.timeout_min=1",
        "hydra.launcher.signal_delay_s=20",
        "hydra.launcher.max_num_timeout=0",
    )
    stop_left.append(sweep)
    assert sweep.wait() == 1, sweep.said + sweep.logs()
    (row,) = sweep.rows()
    assert (row["state"], row["attempt"]) == ("failed", 1)
    assert "max_num_timeout=0" in row["error"]
    assert facts_of(sweep.run(0))["status"] == "preempted"


def test_preemption(cluster: Cluster, tmp_path: Path, stop_left: list[Watched]) -> None:
    sweep = Watched(tmp_path, *LONG)
    stop_left.append(sweep)
    run = until_steps(sweep, 10)
    other = subprocess.run(
        ["sbatch", "--parsable", "-p", "hi", "-N2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 5"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert sweep.wait() == 0, sweep.said + sweep.logs()
    assert cluster.state(other.stdout.strip()) == "COMPLETED"
    assert sweep.rows()[0]["attempt"] == 2
    assert "Back into the queue: preempted" in sweep.logs()
    assert curve(run) == alone(tmp_path)


def test_a_lost_node(cluster: Cluster, tmp_path: Path, stop_left: list[Watched]) -> None:
    sweep = Watched(tmp_path, *SAVING)
    stop_left.append(sweep)
    run = until_steps(sweep, 60)
    node = cluster.said("squeue", "-h", "-j", sweep.job(), "-o", "%N")
    cluster.lose(node)
    try:
        assert sweep.wait() == 0, sweep.said + sweep.logs()
    finally:
        cluster.node(node)
        cluster.until_idle()
    assert sweep.rows()[0]["attempt"] == 2
    assert curve(run) == alone(tmp_path, SAVING)


def test_killed_without_a_word(cluster: Cluster, tmp_path: Path, stop_left: list[Watched]) -> None:
    """No accounting, no result, no note: SLURM alone knows. The same command again goes on from the checkpoint."""
    sweep = Watched(tmp_path, *SAVING, "sweep.retries=0")
    stop_left.append(sweep)
    run = until_steps(sweep, 60)
    kill([*processes_of("submitit.core._submit", str(tmp_path)), *processes_of(f"run_dir={run}")])
    assert sweep.wait() == 1, sweep.said + sweep.logs()
    (row,) = sweep.rows()
    assert (row["state"], row["attempt"]) == ("failed", 1)
    assert row["exit_code"]
    again = Watched(tmp_path, *SAVING)
    stop_left.append(again)
    until_steps(again, 160)
    kill([*processes_of("submitit.core._submit", str(tmp_path)), *processes_of(f"run_dir={run}")])
    assert again.wait() == 0, again.said + again.logs()
    assert (again.rows()[0]["state"], again.rows()[0]["attempt"]) == ("done", 3), "it was submitted once more"
    assert curve(run) == alone(tmp_path, SAVING)


def test_a_run_that_fails_is_tried_again_by_its_job(cluster: Cluster, tmp_path: Path, stop_left: list[Watched]) -> None:
    sweep = Watched(tmp_path, *SAVING, "sweep.retries=1")
    stop_left.append(sweep)
    run = until_steps(sweep, 60)
    children = processes_of(f"run_dir={run}")
    kill(children)
    assert children
    assert sweep.wait() == 0, sweep.said + sweep.logs()
    assert "Back into the queue: failed" in sweep.logs()
    assert (sweep.rows()[0]["state"], sweep.rows()[0]["attempt"]) == ("done", 2)


@pytest.fixture
def patient() -> Iterator[None]:
    """A cluster that gives jobs which are cancelled time to save, however busy the machine is."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, Cluster.start(Path(folder), kill_wait=100):
        yield


def test_more_jobs_than_slots_cancelled_and_gone_on_with(
    cluster: Cluster, patient: None, tmp_path: Path, stop_left: list[Watched]
) -> None:
    words = ("trainer.seed=1,2,3,4,5", "hydra.launcher.array_parallelism=2")
    endless = [word if not word.startswith("trainer.max_steps") else "trainer.max_steps=100000" for word in LONG]
    sweep = Watched(
        tmp_path, *endless, *words
    )  # both run until they are cancelled, however long the second took to begin
    stop_left.append(sweep)
    until_steps(sweep, 5, 0)
    until_steps(sweep, 5, 1)
    assert [row["state"] for row in sweep.rows()] == ["running"] * 2 + ["waiting"] * 3
    done = on_the_command_line(tmp_path, "sweep", "cancel", "sweep")
    assert done.returncode == 0, done.stderr
    assert sweep.wait() == 1, sweep.said
    assert [row["state"] for row in sweep.rows()] == ["cancelled"] * 5
    assert [facts_of(sweep.run(number))["status"] for number in (0, 1)] == ["preempted"] * 2, "they saved"
    short = [word if not word.startswith("trainer.max_steps") else "trainer.max_steps=20" for word in LONG]
    again = Watched(tmp_path / "other", *short, *words)
    stop_left.append(again)
    assert again.wait() == 0, again.said + again.logs()
    assert [row["state"] for row in again.rows()] == ["done"] * 5
    assert {row["device"] for row in again.rows()} == {f"slurm {again.job(0).partition('_')[0]}_{n}" for n in range(5)}


def test_nobody_watches(cluster: Cluster, tmp_path: Path, stop_left: list[Watched]) -> None:
    """The watcher is killed; the jobs go on; whoever asks is told; whoever waits sees them end."""
    sweep = Watched(tmp_path, *LONG, "trainer.seed=1,2")
    stop_left.append(sweep)
    until_steps(sweep, 5)
    sweep.process.kill()
    sweep.process.wait()
    status = on_the_command_line(tmp_path, "sweep", "status", "sweep")
    assert "nobody watches them" in status.stdout, status.stdout + status.stderr
    assert status.stdout.count("running") >= 2
    waited = on_the_command_line(tmp_path, "sweep", "wait", "sweep")
    assert waited.returncode == 0, waited.stdout + waited.stderr + sweep.logs()
    assert [row["state"] for row in sweep.rows()] == ["done", "done"]
    assert [row["attempt"] for row in sweep.rows()] == [1, 1]


def test_detached_and_forgotten(tmp_path: Path) -> None:
    """A controller that forgets a job seconds after its end, no accounting: what is on disk tells, and nothing is lost."""
    short = [word if not word.startswith("trainer.max_steps") else "trainer.max_steps=5" for word in LONG]
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, Cluster.start(Path(folder), remembers=2) as cluster:
        sweep = Watched(tmp_path, *short, "trainer.lr=1e-3,-1", "sweep.detach=true")
        assert sweep.wait() == 0, sweep.said
        assert [row["state"] for row in sweep.rows()] == ["waiting"] * 2
        sweep.until(lambda: cluster.said("scontrol", "-o", "show", "job") in ("", "No jobs in the system"))
        status = on_the_command_line(tmp_path, "sweep", "status", "sweep", "sweep.format=json")
        assert status.returncode == 0, status.stderr
        assert [row["state"] for row in sweep.rows()] == ["done", "failed"], sweep.logs()
        assert sweep.rows()[1]["exit_code"] == 2
        again = Watched(tmp_path, *short, "trainer.lr=1e-3,-1")
        assert again.wait() == 1
        assert "1 done already" in again.said


@pytest.mark.parametrize(("launch", "wrapper"), [("ddp", "DDP"), ("fsdp", "FSDP2")])
@pytest.mark.parametrize("interrupted", [False, True])
def test_two_nodes(
    interrupted: bool, launch: str, wrapper: str, cluster: Cluster, tmp_path: Path, stop_left: list[Watched]
) -> None:
    """One gloo rank on each; told to save, put back, gone on with: the curve of one process to 1e-5 (over more than these 60
    steps two orders of addition in float32 part by more)."""
    words = [*SMALL, "trainer.max_steps=60", "trainer.global_batch_size=2", "trainer.micro_batch_size=1"]
    slow = [*SLOW, "patch.slow.seconds=0.05"]
    sweep = Watched(tmp_path, *slow, *words, f"launch={launch}", "launch.num_nodes=2", "launch.num_processes=1")
    stop_left.append(sweep)
    run = until_steps(sweep, 5)
    assert cluster.said("squeue", "-h", "-j", sweep.job(), "-o", "%D") == "2"
    if interrupted:
        subprocess.run(["scancel", "--signal=USR2", sweep.job()], check=True)
    assert sweep.wait() == 0, sweep.said + sweep.logs()
    assert sweep.rows()[0]["attempt"] == 1 + interrupted
    facts = facts_of(run)
    assert (facts["status"], facts["parallel"], facts["batch"]["ranks"]) == ("finished", wrapper, 2)
    dumbo.run([*words, "launch=single", f"run_dir={tmp_path / 'alone'}"])
    for together, single in zip(curve(run), curve(tmp_path / "alone"), strict=True):
        assert together[:2] == pytest.approx(single[:2], abs=1e-5)


def test_a_lost_node_of_two(cluster: Cluster, tmp_path: Path, stop_left: list[Watched]) -> None:
    """The first node's ranks notice, or SLURM does: the job is put back, and goes on when there are two nodes again."""
    words = [word if not word.startswith("trainer.max_steps") else "trainer.max_steps=150" for word in LONG]
    sweep = Watched(
        tmp_path,
        *words,
        "trainer.save_every=10",
        "launch=ddp",
        "launch.num_nodes=2",
        "launch.num_processes=1",
        "launch.timeout=8s",
    )
    stop_left.append(sweep)
    run = until_steps(sweep, 15)
    cluster.lose("n2")
    sweep.until(lambda: sweep.rows()[0]["state"] == "waiting")
    cluster.node("n2")
    assert sweep.wait() == 0, sweep.said + sweep.logs()
    assert sweep.rows()[0]["attempt"] >= 2
    assert [row["step"] for row in rows_of(run) if "loss" in row] == list(range(1, 151)), "each step once"


def test_submitit_on_this_machine(cluster: Cluster, tmp_path: Path) -> None:
    short = [word if not word.startswith("trainer.max_steps") else "trainer.max_steps=5" for word in LONG]
    done = on_the_command_line(
        tmp_path, "-m", "hydra/launcher=submitit_local", *short, "trainer.seed=1,2", "sweep_dir=sweep"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {facts_of(run.parent)["status"] for run in tmp_path.glob("sweep/*/run.json")} == {"finished"}
    assert len(list(tmp_path.glob("sweep/*/run.json"))) == 2


def test_watched_by_two(cluster: Cluster, tmp_path: Path, stop_left: list[Watched]) -> None:
    """Ctrl-C ends the watching and not the job; a second watcher beside the first is sent away."""
    sweep = Watched(tmp_path, *LONG)
    stop_left.append(sweep)
    until_steps(sweep, 5)
    second = Watched(tmp_path, *LONG)
    stop_left.append(second)
    assert second.wait() == 2, second.said
    sweep.process.send_signal(signal.SIGINT)
    assert sweep.wait() == 130
    assert "the jobs go on" in sweep.said
    assert cluster.state(sweep.job()) == "RUNNING"
    third = Watched(tmp_path, *LONG)
    stop_left.append(third)
    assert third.wait() == 0, third.said
    assert third.rows()[0]["attempt"] == 1


def test_killed_between_the_queue_and_the_ledger(cluster: Cluster, tmp_path: Path, stop_left: list[Watched]) -> None:
    """SLURM has the jobs, no row knows: what began is adopted, what waits is submitted once and not twice."""
    short = [word if not word.startswith("trainer.max_steps") else "trainer.max_steps=200" for word in LONG]
    words = (*short, "trainer.seed=1,2", "hydra.launcher.array_parallelism=1")
    sweep = Watched(tmp_path, *words, "sweep.detach=true")
    stop_left.append(sweep)
    assert sweep.wait() == 0, sweep.said
    before = [row["device"] for row in sweep.rows()]
    until_steps(sweep, 3)
    ledger = Ledger.open(sweep.folder)
    ledger.put([replace(row, device=None, state="waiting", attempt=0) for row in ledger])
    again = Watched(tmp_path, *words)
    stop_left.append(again)
    assert again.wait() == 0, again.said + again.logs()
    assert [row["state"] for row in again.rows()] == ["done", "done"]
    assert [row["attempt"] for row in again.rows()] == [1, 1]
    after = [row["device"] for row in again.rows()]
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert cluster.state(before[1].removeprefix("slurm ")) == "CANCELLED"
