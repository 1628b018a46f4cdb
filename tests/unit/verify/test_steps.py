"""The run that is stopped half way has exactly k steps, also where a GPU writes its rows one step late."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch as changed

import pytest
from proving import subject_of

from dumbo.trainer.session import SftTrainer
from dumbo.verify.steps import HALF, interrupted_task, straight


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_it_stops_after_k_steps(late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    equip = SftTrainer.equip

    def equipped(self: SftTrainer, **things: Any) -> None:
        equip(self, **things)
        self.rows_late = late

    monkeypatch.setattr(SftTrainer, "equip", equipped)
    with changed.dict(os.environ, {"DUMBO_CACHE": str(tmp_path / "cache")}):
        subject = subject_of(tmp_path, [])
        whole = straight(subject)["rows"]
        rows = interrupted_task(subject, tmp_path / "interrupted")["rows"]
    assert [row["step"] for row in rows] == list(range(1, HALF + 1))
    assert rows == whole[:HALF]
