"""Jobs of a sweep that do not run: what would be started is noted, and each leaves a finished run (or what a test says)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dumbo.command import parse
from dumbo.refuse import typed_text
from dumbo.sweep.job import Start

Ending = Callable[[Path, int], int]
"""(the run's folder, which start it is, from 0) -> exit code."""


def finished(folder: Path, number: int) -> int:
    """Leaves a finished run whose held-out loss is its number."""
    leave(
        folder,
        status="finished",
        config_hash="abc",
        metrics={"eval_loss": float(number), "train_loss": 1.0, "steps": 3},
    )
    return 0


def leave(folder: Path, **facts: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(facts))


class NotStarted:
    """In the place of `dumbo.sweep.local.Warm`."""

    def __init__(self, ending: Ending = finished) -> None:
        self.ending = ending
        self.starts: list[Start] = []
        self.words: list[list[str]] = []

    def __call__(self, *arguments: object) -> NotStarted:
        return self

    def start(self, start: Start) -> Any:
        self.starts.append(start)
        self.words.append(start.words)
        folder = typed_text(parse(start.words).overrides, "run_dir")
        assert folder is not None
        code = self.ending(Path(folder), len(self.starts) - 1)

        class Ended:
            def poll(self) -> int:
                return code

            def signal(self, number: int) -> None:
                return None

        return Ended()

    def wait(self, seconds: float) -> None:
        return None

    def close(self) -> None:
        return None


def facts(folder: Path) -> list[dict[str, Any]]:
    """run.json of each run of a sweep."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*/run.json"))]
