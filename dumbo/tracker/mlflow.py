"""`tracker=mlflow`: MLflow, to a server or to a local store, through its own library."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LONGEST_VALUE = 500
"""MLflow refuses longer parameter values."""


@dataclass(kw_only=True)
class MLflow:
    """Logs to an experiment.

    Args:
        tracking_uri: a server, or `sqlite:///FILE`; null: MLFLOW_TRACKING_URI, or mlflow.db in the run's folder.
        experiment: where runs go.
        name: of the run; null: MODEL-PATCHES, as the folder.
    """

    tracking_uri: str | None = None
    experiment: str = "dumbo"
    name: str | None = None
    _client: Any = field(default=None, init=False, repr=False)
    _run_id: str = field(default="", init=False, repr=False)

    def problems(self) -> Iterable[str]:
        if importlib.util.find_spec("mlflow") is None:
            yield "mlflow is not installed.\n  pip install 'dumbo[mlflow]'"

    def start(self, run_dir: Path, name: str, config: dict[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        from dumbo.outputs.config_hash import flattened

        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run_dir / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self.experiment)
        self._run_id = self._client.create_run(experiment, run_name=self.name or name).info.run_id
        for key, value in flattened(config).items():
            self._client.log_param(self._run_id, key, str(value)[:LONGEST_VALUE])

    def log(self, row: dict[str, float], step: int) -> None:
        for key, value in row.items():
            self._client.log_metric(self._run_id, key, value, step=step)

    def finish(self, status: str, metrics: dict[str, float]) -> None:
        for key, value in metrics.items():
            self._client.log_metric(self._run_id, f"final/{key}", value)
        self._client.set_terminated(self._run_id, "FINISHED" if status == "finished" else "FAILED")
