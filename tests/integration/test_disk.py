"""A full disk: exit code 1, the remedy named, the checkpoints written before intact, and the run goes on afterwards."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Command, curve, facts_of, rows_of

from dumbo.trainer.manifest import verify

WORDS = (
    "run_dir=run", "trainer.max_steps=12", "trainer.num_samples=0", "trainer.num_answers=0", "trainer.max_seq_len=128",
    "trainer.save_every=4", "trainer.eval_every=null", "trainer.eval_at_start=false", "trainer.save_total_limit=9", "trainer.warmup_steps=2",
)  # fmt: skip
CHECKPOINT = 6_100_000
"""Bytes of one checkpoint of the tiny model, about: weights and two moments in fp32."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    command = Command(folder, *WORDS)
    assert command.wait() == 0, command.said()
    size = sum(path.stat().st_size for path in (folder / "run" / "checkpoints" / "step-000004").iterdir())
    assert abs(size - CHECKPOINT) < 0.1 * CHECKPOINT, size
    return folder / "run"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for two checkpoints and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = int(2.5 * CHECKPOINT)
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounting a small file system needs root; the file size limit below is tested everywhere")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def assert_gone_on_with(folder: Path, whole: Path) -> None:
    again = Command(folder, *WORDS, "resume=auto")
    assert again.wait() == 0, again.said()
    assert curve(folder / "run") == curve(whole)
    assert facts_of(folder / "run")["status"] == "finished"


def test_full_while_saving(whole: Path, small_disk: Path) -> None:
    command, run = Command(small_disk, *WORDS), small_disk / "run"
    assert command.wait() == 1, command.said()
    said = command.said()
    assert "The checkpoint step-000012 could not be written: the disk is full" in said
    assert "Older checkpoints are intact: step-000004, step-000008. Free some space, then go on with resume=" in said
    assert "Traceback" not in said
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000004", "step-000008"]
    assert all(verify(path) is None for path in (run / "checkpoints").iterdir())
    assert facts_of(run)["status"] == "failed"
    assert "disk is full" in facts_of(run)["error"]
    shutil.rmtree(run / "checkpoints" / "step-000004")
    subprocess.run(["mount", "-o", f"remount,size={10 * CHECKPOINT}", str(small_disk)], check=True)
    assert_gone_on_with(small_disk, whole)


def fill_at_step_six() -> None:
    """Something else takes the last byte of the disk during step 6."""
    from dumbo.trainer.engine import Engine

    step = Engine.training_step

    def filling(self: Engine, *args: object) -> object:
        if self.state.global_step == 5:
            with Path("hog").open("wb", buffering=0) as hog:
                try:
                    while True:
                        hog.write(b"x" * 4096)
                except OSError:
                    pass
        return step(self, *args)

    Engine.training_step = filling  # type: ignore[assignment]


def test_full_while_logging(whole: Path, small_disk: Path) -> None:
    """metrics.jsonl, dumbo.log and run.json cannot be written: the run says so and ends; nothing is lost."""
    command, run = Command(small_disk, *WORDS, prelude=fill_at_step_six), small_disk / "run"
    assert command.wait() == 1, command.said()
    (small_disk / "hog").unlink()
    assert verify(run / "checkpoints" / "step-000004") is None
    assert facts_of(run)["status"] in ("running", "failed")
    assert rows_of(run)
    subprocess.run(["mount", "-o", f"remount,size={10 * CHECKPOINT}", str(small_disk)], check=True)
    assert_gone_on_with(small_disk, whole)


def no_large_files() -> None:
    """Files may hold a million bytes: the first weights cannot be written."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


def test_a_limit_on_file_sizes(whole: Path, tmp_path: Path) -> None:
    command, run = Command(tmp_path, *WORDS, prelude=no_large_files), tmp_path / "run"
    assert command.wait() == 1, command.said()
    assert "The checkpoint step-000004 could not be written" in command.said()
    assert "Older checkpoints are intact: none yet" in command.said()
    assert "Traceback" not in command.said()
    assert not list((run / "checkpoints").iterdir())
    assert facts_of(run)["status"] == "failed"
    assert_gone_on_with(tmp_path, whole)
