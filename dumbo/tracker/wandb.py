"""`tracker=wandb`: Weights & Biases, online or offline, through its own library."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dumbo.errors import UserError


@dataclass(kw_only=True)
class Wandb:
    """Logs to a project; the key is wandb's own (`wandb login`, or WANDB_API_KEY).

    Args:
        project: where runs go.
        entity: user or team; null: the default one.
        name: of the run; null: MODEL-PATCHES, as the folder.
        mode: online, offline (`wandb sync` later), disabled.
        tags: of the run.
    """

    project: str = "dumbo"
    entity: str | None = None
    name: str | None = None
    mode: Literal["online", "offline", "disabled"] = "online"
    tags: list[str] = field(default_factory=list)
    _run: Any = field(default=None, init=False, repr=False)

    def problems(self) -> Iterable[str]:
        if importlib.util.find_spec("wandb") is None:
            yield "wandb is not installed.\n  pip install 'dumbo[wandb]'"

    def start(self, run_dir: Path, name: str, config: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its makers' own crash reports
        import wandb

        try:
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                name=self.name or name,
                mode=self.mode,
                tags=self.tags,
                config=config,
                dir=str(run_dir),
            )
        except wandb.Error as error:
            raise UserError(
                f"tracker.wandb: wandb could not start ({str(error).splitlines()[0]}).\n"
                "  Log in with wandb login, or write tracker.wandb.mode=offline and wandb sync the run later."
            ) from error

    def log(self, row: dict[str, float], step: int) -> None:
        self._run.log(row, step=step)

    def finish(self, status: str, metrics: dict[str, float]) -> None:
        self._run.summary.update({f"final/{key}": value for key, value in metrics.items()})
        self._run.finish(exit_code=0 if status == "finished" else 1)
