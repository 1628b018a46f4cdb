"""The loss of a chunk by a kernel: its numbers through Triton's interpreter (`loss_interpreted.py`)."""

from __future__ import annotations

from pathlib import Path

import interpreted


def test_its_numbers_in_the_interpreter() -> None:
    assert interpreted.passed(Path(__file__).with_name("loss_interpreted.py")) == 26
