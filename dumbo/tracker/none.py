"""`tracker=none`: nothing besides metrics.jsonl, which is always written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class NoTracker:
    """Takes every call and does nothing."""

    def start(self, run_dir: Path, name: str, config: dict[str, Any]) -> None:
        pass

    def log(self, row: dict[str, float], step: int) -> None:
        pass

    def finish(self, status: str, metrics: dict[str, float]) -> None:
        pass
