"""`tracker=tensorboard`: event files in the run's folder, through torch's SummaryWriter.

tensorboard --logdir outputs
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(kw_only=True)
class TensorBoard:
    """Writes scalars.

    Args:
        folder: below the run's folder.
    """

    folder: str = "tensorboard"
    _writer: Any = field(default=None, init=False, repr=False)

    def problems(self) -> Iterable[str]:
        if importlib.util.find_spec("tensorboard") is None:
            yield "tensorboard is not installed.\n  pip install 'dumbo[tensorboard]'"

    def start(self, run_dir: Path, name: str, config: dict[str, Any]) -> None:
        import yaml
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / self.folder))
        text = yaml.safe_dump(config, sort_keys=False)
        self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()))

    def log(self, row: dict[str, float], step: int) -> None:
        for key, value in row.items():
            self._writer.add_scalar(key, value, step)

    def finish(self, status: str, metrics: dict[str, float]) -> None:
        for key, value in metrics.items():
            self._writer.add_scalar(f"final/{key}", value)
        self._writer.close()
