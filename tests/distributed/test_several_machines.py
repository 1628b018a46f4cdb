"""Two machines on one: network namespaces with addresses of their own, a link between them, one gloo rank on each.

Needs root and iproute2. The link is cut, and a machine is killed; the run ends in time, says why, and goes on.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks import curve, environment, facts

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"),
]
TIMEOUT, LIMIT = 8, 25.0
"""launch.timeout in seconds; and until both ends must be over: the timeout, the other ranks' grace, the last words."""
WORDS = ("trainer.num_answers=0", "trainer.num_samples=0", "trainer.eval_at_start=false", "trainer.eval_every=null",
         "trainer.global_batch_size=4", "trainer.micro_batch_size=1", "trainer.max_steps=120", "trainer.save_every=5",
         "launch=ddp", "launch.num_nodes=2", f"launch.timeout={TIMEOUT}s", "launch.start_timeout=60s")  # fmt: skip
ADDRESSES = {"a": "10.77.0.1", "b": "10.77.0.2"}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def names() -> Iterator[dict[str, str]]:
    """Machine -> its namespace. The link is `link-a` in a's, `link-b` in b's."""
    found = {machine: f"dumbo-{machine}-{os.getpid()}" for machine in ADDRESSES}
    for name in found.values():
        ip("netns", "add", name)
    ip("link", "add", "link-a", "netns", found["a"], "type", "veth", "peer", "name", "link-b", "netns", found["b"])
    for machine, name in found.items():
        ip("-n", name, "addr", "add", f"{ADDRESSES[machine]}/24", "dev", f"link-{machine}")
        ip("-n", name, "link", "set", f"link-{machine}", "up")
        ip("-n", name, "link", "set", "lo", "up")
    yield found
    for name in found.values():
        pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)
        ip("netns", "del", name)


class Machine:
    """`python -m dumbo` on one of them."""

    def __init__(self, name: str, folder: Path, *words: str) -> None:
        self.name, self.out = name, folder / f"{name}.txt"
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "dumbo", *words]
        with self.out.open("a") as out:
            self.process = subprocess.Popen(command, env=environment(), stdout=out, stderr=out, cwd=folder)

    def kill(self) -> None:
        for pid in subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout.split():
            os.kill(int(pid), signal.SIGKILL)

    @property
    def said(self) -> str:
        return self.out.read_text()


def both(names: dict[str, str], folder: Path, port: int, *words: str) -> dict[str, Machine]:
    meeting = f"launch.rdzv_endpoint={ADDRESSES['a']}:{port}"
    return {machine: Machine(name, folder, *words, meeting) for machine, name in names.items()}


def until_saved(run: Path, machines: dict[str, Machine]) -> None:
    for _ in range(900):
        assert all(machine.process.poll() is None for machine in machines.values()), [m.said for m in machines.values()]
        if list(run.glob("checkpoints/step-*")):
            return
        time.sleep(0.1)
    raise TimeoutError([machine.said for machine in machines.values()])


def go_on_and_compare(names: dict[str, str], folder: Path, run: Path, port: int) -> None:
    """On both machines again; the joined curve is that of one process to 1e-5."""
    import dumbo

    machines = both(names, folder, port, f"resume={run}")
    assert [machine.process.wait(240) for machine in machines.values()] == [0, 0], [m.said for m in machines.values()]
    assert facts(run)["status"] == "finished"
    one = folder / "one"
    dumbo.run([word for word in WORDS if not word.startswith("launch")] + ["launch=single", f"run_dir={one}"])
    for (step, loss, _), (_, alone, _) in zip(curve(run), curve(one), strict=True):
        assert loss == pytest.approx(alone, abs=1e-5), step


def test_a_cut_link(names: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    machines = both(names, tmp_path, 29611, *WORDS, f"run_dir={run}")
    until_saved(run, machines)
    ip("-n", names["a"], "link", "set", "link-a", "down")
    began = time.monotonic()
    codes = [machine.process.wait(120) for machine in machines.values()]
    assert time.monotonic() - began < LIMIT
    assert codes == [1, 1]
    for machine in machines.values():
        assert "did not answer" in machine.said or "were lost" in machine.said, machine.said
    assert facts(run)["status"] == "failed"
    ip("-n", names["a"], "link", "set", "link-a", "up")
    go_on_and_compare(names, tmp_path, run, 29612)


@pytest.mark.parametrize("killed", ["a", "b"])
def test_a_killed_machine(killed: str, names: dict[str, str], tmp_path: Path) -> None:
    """a is where they meet; who holds the folder is whoever came first."""
    run = tmp_path / "run"
    machines = both(names, tmp_path, 29613, *WORDS, f"run_dir={run}")
    until_saved(run, machines)
    machines[killed].kill()
    other = machines["b" if killed == "a" else "a"]
    began = time.monotonic()
    assert other.process.wait(120) == 1
    assert time.monotonic() - began < LIMIT
    assert "did not answer" in other.said or "were lost" in other.said, other.said
    go_on_and_compare(names, tmp_path, run, 29614)


def test_a_machine_that_never_comes(names: dict[str, str], tmp_path: Path) -> None:
    words = [word for word in WORDS if not word.startswith("launch.start_timeout")]
    meeting = f"launch.rdzv_endpoint={ADDRESSES['a']}:29615"
    alone = Machine(names["a"], tmp_path, *words, "launch.start_timeout=8s", meeting, f"run_dir={tmp_path / 'run'}")
    assert alone.process.wait(90) == 1
    assert "2 machines did not meet" in alone.said or "not ready after 8 s" in alone.said, alone.said


def test_machines_need_one_folder(names: dict[str, str], tmp_path: Path) -> None:
    alone = Machine(names["a"], tmp_path, *WORDS, f"launch.rdzv_endpoint={ADDRESSES['a']}:29616")
    assert alone.process.wait(60) == 2
    assert "run_dir=FOLDER" in alone.said
