"""Hydra launcher `gpu_pool`: jobs of a sweep at once, each on GPUs of its own, several on one GPU, or on a part of the cores.

How many is said by sweep.gpus_per_job, sweep.jobs_per_gpu and sweep.cpu_slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

ConfigStore.instance().store(
    group="hydra/launcher",
    name="gpu_pool",
    node={"_target_": "hydra_plugins.dumbo_gpu_pool_launcher.GpuPoolLauncher"},
    provider="dumbo",
)


class GpuPoolLauncher(Launcher):
    """Hands the jobs to `dumbo.sweep.runner`, which knows that this launcher was chosen."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.config, self.context, self.task_function = config, hydra_context, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from dumbo.sweep.runner import Runner

        return Runner.current().run_jobs(job_overrides, self.config, self.context.config_loader)
