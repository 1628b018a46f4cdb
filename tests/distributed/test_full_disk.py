"""The disk fills while several ranks save: exit code 1, one error, the checkpoints before it whole, and the run goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks import curve, environment, facts

from dumbo.trainer.manifest import verify

pytestmark = pytest.mark.full
WORDS = ("trainer.num_answers=0", "trainer.num_samples=0", "trainer.eval_at_start=false", "trainer.eval_every=null",
         "trainer.global_batch_size=4", "trainer.micro_batch_size=1", "trainer.max_steps=16", "trainer.save_every=4",
         "trainer.save_total_limit=9", "launch.num_processes=2")  # fmt: skip
CHECKPOINT = 6_100_000
"""Bytes of one, about: weights and two moments of the tiny model in fp32."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Room for two checkpoints and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(2.5 * CHECKPOINT)}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def dumbo(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dumbo", *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("launch", ["ddp", "fsdp"])
def test_full_while_saving(launch: str, small_disk: Path, tmp_path: Path) -> None:
    run = small_disk / "run"
    done = dumbo(*WORDS, f"launch={launch}", f"run_dir={run}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.count("The checkpoint step-000012 could not be written: the disk is full") == 1, done.stderr
    assert "Older checkpoints are intact: step-000004, step-000008" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000004", "step-000008"]
    assert all(verify(path) is None for path in (run / "checkpoints").iterdir())
    assert facts(run)["status"] == "failed"
    subprocess.run(["mount", "-o", f"remount,size={10 * CHECKPOINT}", str(small_disk)], check=True)
    again = dumbo(f"resume={run}")
    assert again.returncode == 0, again.stdout + again.stderr
    whole = dumbo(*WORDS, f"launch={launch}", f"run_dir={tmp_path / 'whole'}")
    assert whole.returncode == 0
    assert curve(run) == curve(tmp_path / "whole")
