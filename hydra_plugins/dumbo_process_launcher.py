"""Hydra launcher `process`: each job of a sweep in a process of its own.

Hydra finds launchers only under `hydra_plugins`. Its own launcher runs all jobs in one process, where the patches of
one job (Liger replaces functions of transformers) would reach the next, and one crash would end the sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

ConfigStore.instance().store(
    group="hydra/launcher",
    name="process",
    node={"_target_": "hydra_plugins.dumbo_process_launcher.ProcessLauncher"},
    provider="dumbo",
)


class ProcessLauncher(Launcher):
    """Hands each job to `dumbo.sweep.runner`."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.config, self.context, self.task_function = config, hydra_context, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from dumbo.sweep.runner import Runner

        return Runner.current().run_jobs(job_overrides, self.config, self.context.config_loader)
