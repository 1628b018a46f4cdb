"""Hydra launchers `submitit_slurm` and `submitit_local`: each job of a sweep as a job in SLURM, or a process of submitit's.

The names and keys are those of hydra-submitit-launcher, which is needed for them. Its own launcher runs all of a job in one
process that submitit's signal handler ends at once, and waits for results that a killed job never writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

if TYPE_CHECKING:
    from dumbo.sweep.pool import Job


class SubmititLauncher(Launcher):
    """Hands the jobs to `dumbo.slurm.pool`.

    Args:
        parameters: of hydra.launcher (conf/hydra/launcher).
    """

    cluster = ""

    def __init__(self, **parameters: Any) -> None:
        self.parameters = {
            key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for key, value in parameters.items()
        }
        self._known: dict[tuple[str, ...], int] = {}

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.config, self.context, self.task_function = config, hydra_context, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from dumbo.slurm.pool import SlurmPool
        from dumbo.sweep.local import Sweep

        sweep = Sweep.current()
        sweep.elsewhere = SlurmPool(
            sweep.folder, sweep.ledger, sweep.console, sweep.options.metric, sweep.options.retries, sweep.options.detach,
            self.parameters, self.cluster, self._nodes,
        )  # fmt: skip
        return sweep.run_jobs(job_overrides, initial_job_idx)

    def _nodes(self, job: Job) -> int:
        """How many nodes a job wants: its launch.num_nodes, unless hydra.launcher.nodes says the same."""
        from dumbo.errors import UserError
        from dumbo.explain import FILE_GROUP
        from dumbo.override_text import value_text

        words = [word for word in job.words if ("=" in word or word.startswith("~")) and not word.startswith("--")]
        words += [f"+{FILE_GROUP}=experiment"] * any(
            word.endswith((".yaml", ".yml")) for word in job.words[:-2] if "=" not in word
        )
        choosing = tuple(word for word in words if word.lstrip("+~").startswith(("launch", "experiment", FILE_GROUP)))
        if choosing not in self._known:  # composing takes a tenth of a second
            words.append(f"sweep_dir={value_text(self.config.sweep_dir)}")
            cfg = self.context.config_loader.load_sweep_config(self.config, words)
            self._known[choosing] = getattr(cfg.launch, "num_nodes", 1)
        nodes, typed = self._known[choosing], self.parameters.get("nodes") or 1
        if typed not in (1, nodes):
            raise UserError(
                f"hydra.launcher.nodes={typed}, and the job has launch.num_nodes={nodes}.\n"
                f"  Write launch=ddp launch.num_nodes={typed}, and leave hydra.launcher.nodes out."
            )
        return nodes


class SlurmLauncher(SubmititLauncher):
    """Jobs in SLURM."""

    cluster = "slurm"


class LocalLauncher(SubmititLauncher):
    """Jobs in processes on this machine, as submitit's local executor runs them."""

    cluster = "local"
