"""Hydra's launchers as a sweep knows them: which of them run its jobs here, which in a cluster's queue."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from dumbo.hydra_node import key_of
from dumbo.sweep.options import SweepOptions
from dumbo.sweep.slots import wants_pool

BY_CLASS = {
    "hydra_plugins.dumbo_submitit_launcher.SlurmLauncher": "submitit_slurm",
    "hydra_plugins.dumbo_submitit_launcher.LocalLauncher": "submitit_local",
}
"""A launcher's file may have another name: what is always said to a cluster goes into a file of the user's."""
SUBMITTING = tuple(BY_CLASS.values())
"""Launchers whose jobs do not end with the sweep (dumbo/slurm)."""
OURS = ("process", "gpu_pool", *SUBMITTING)
"""Launchers whose jobs stand in a ledger."""


def launcher_of(cfg: DictConfig, typed: Sequence[str], options: SweepOptions) -> str:
    """The launcher's name; the pool, where several jobs at once are asked for and no launcher is typed."""
    chosen = BY_CLASS.get(str(cfg.hydra.launcher.get("_target_")), str(cfg.hydra.runtime.choices["hydra/launcher"]))
    named = any(key_of(word) == "hydra/launcher" for word in typed)
    return "gpu_pool" if chosen == "process" and not named and wants_pool(options) else chosen
