"""Hydra launchers `submitit_slurm` and `submitit_local`: each job of a sweep as a job in SLURM, or a process of submitit's.

The names and keys are those of hydra-submitit-launcher, which is needed for them. Its own launcher runs all of a job in one
process that submitit's signal handler ends at once, and waits for results that a killed job never writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher


class SlurmLauncher(Launcher):
    """Hands the jobs to `dumbo.sweep.runner`, which knows that this launcher was chosen.

    Args:
        parameters: of hydra.launcher (conf/hydra/launcher); `dumbo.slurm.pool` reads them.
    """

    def __init__(self, **parameters: Any) -> None:
        self.parameters = parameters

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.config, self.context, self.task_function = config, hydra_context, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from dumbo.sweep.runner import Runner

        return Runner.current().run_jobs(job_overrides, self.config, self.context.config_loader)


class LocalLauncher(SlurmLauncher):
    """Jobs in processes on this machine, as submitit's local executor runs them."""
