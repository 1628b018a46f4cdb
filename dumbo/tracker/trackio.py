"""`tracker=trackio`: Hugging Face's local tracker, through its own library.

trackio show
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(kw_only=True)
class Trackio:
    """Logs to a local project (its folder: TRACKIO_DIR).

    Args:
        project: where runs go.
        name: of the run; null: MODEL-PATCHES, as the folder.
        space_id: a hub Space to mirror it to; null: TRACKIO_SPACE_ID, and without that nothing leaves this machine.
    """

    project: str = "dumbo"
    name: str | None = None
    space_id: str | None = None
    _run: Any = field(default=None, init=False, repr=False)

    def problems(self) -> Iterable[str]:
        if importlib.util.find_spec("trackio") is None:
            yield "trackio is not installed.\n  pip install 'dumbo[trackio]'"

    def start(self, run_dir: Path, name: str, config: dict[str, Any]) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        import trackio

        with _quiet():
            self._run = trackio.init(
                project=self.project, name=self.name or name, config=config, space_id=self.space_id, embed=False
            )

    def log(self, row: dict[str, float], step: int) -> None:
        self._run.log(row, step=step)

    def finish(self, status: str, metrics: dict[str, float]) -> None:
        import trackio

        with _quiet():
            self._run.log({f"final/{key}": value for key, value in metrics.items()})
            trackio.finish()


@contextmanager
def _quiet() -> Iterator[None]:
    """The library prints, in colour, also into a pipe: into the log with it."""
    said = io.StringIO()
    with redirect_stdout(said):
        yield
    logging.getLogger("trackio").info(said.getvalue())
