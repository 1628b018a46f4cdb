"""Hydra launchers `submitit_slurm` and `submitit_local`: each job of a sweep as a job in SLURM, or a process of submitit's.

The names and keys are those of hydra-submitit-launcher, which is needed for them. Its own launcher runs all of a job in one
process that submitit's signal handler ends at once, and waits for results that a killed job never writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf


class SubmititLauncher(Launcher):
    """Hands the jobs to `dumbo.slurm.sweep`.

    Args:
        parameters: of hydra.launcher (conf/hydra/launcher).
    """

    cluster = ""

    def __init__(self, **parameters: Any) -> None:
        self.parameters = {
            key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for key, value in parameters.items()
        }

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.config, self.context, self.task_function = config, hydra_context, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from dumbo.slurm.hydra import run_jobs

        return run_jobs(job_overrides, initial_job_idx, self._nodes, self.parameters, self.cluster)

    def _nodes(self, overrides: Sequence[str]) -> int:
        """How many nodes a job wants: its launch.num_nodes."""
        cfg = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        return int(OmegaConf.select(cfg, "launch.num_nodes", default=1))


class SlurmLauncher(SubmititLauncher):
    """Jobs in SLURM."""

    cluster = "slurm"


class LocalLauncher(SubmititLauncher):
    """Jobs in processes on this machine, as submitit's local executor runs them."""

    cluster = "local"
