"""Attention in tiles: what it takes, and its numbers through Triton's interpreter (`tiles_interpreted.py`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dumbo.trainer import tiles

INTERPRETED = Path(__file__).with_name("tiles_interpreted.py")
CASES = 8


def test_its_numbers_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", str(INTERPRETED)]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, env={**own, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CASES} passed" in done.stdout


@pytest.mark.parametrize(
    ("wanted", "width", "dtype", "dropout", "device"),
    [
        (True, 64, torch.bfloat16, 0.0, "cuda"),
        (True, 128, torch.float16, 0.0, "cuda"),
        (False, 80, torch.bfloat16, 0.0, "cuda"),
        (False, 64, torch.float32, 0.0, "cuda"),
        (False, 64, torch.bfloat16, 0.1, "cuda"),
        (False, 64, torch.bfloat16, 0.0, "cpu"),
    ],
)
def test_what_the_kernels_take(wanted: bool, width: int, dtype: torch.dtype, dropout: float, device: str) -> None:
    with FakeTensorMode():
        tensor = torch.empty(1, 2, 5, width, dtype=dtype, device=device)
    assert tiles.usable(tensor, tensor, dropout) is wanted
