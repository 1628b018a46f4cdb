"""Puts jobs into SLURM's queue through submitit, as arrays; `hydra.launcher` holds what sbatch is told.

    jobs of one shape (nodes) -> arrays of at most LONGEST_ARRAY -> their numbers, as 12_3

The keys are those of hydra-submitit-launcher 1.2; its dataclasses check their types.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dumbo.errors import UserError
from dumbo.slurm.task import Task

LONGEST_ARRAY = 1000
"""SLURM's own limit (MaxArraySize) is 1001 unless the cluster sets another."""
LEFT_ALONE = "120"
"""Seconds that the other nodes of a job have when the first one has ended."""
LOCAL_WARNING, LOCAL_STARTS = 30, 6
"""Of submitit's local executor: seconds before the time limit that it sends its warning; starts of a job at most."""
T = TypeVar("T")
INSTALL = "pip install 'dumbo[slurm]'"


def checked_parameters(parameters: Mapping[str, Any], cluster: str) -> dict[str, Any]:
    """What `hydra.launcher` says, its types checked; null where nothing is to be said to sbatch.

    Raises:
        UserError: a value of another type, several tasks a node, or the extra is not installed.
    """
    try:
        from hydra_plugins.hydra_submitit_launcher import config
    except ImportError as error:
        raise UserError(f"hydra/launcher=submitit_{cluster} needs hydra-submitit-launcher: {INSTALL}") from error
    schema = OmegaConf.structured(config.SlurmQueueConf if cluster == "slurm" else config.LocalQueueConf)
    OmegaConf.set_readonly(schema, False)
    typed = {key: value for key, value in parameters.items() if value is not None}
    for key, value in typed.items():
        if isinstance(value, str) and not value.isprintable():
            raise UserError(
                f"hydra.launcher.{key}={value!r}: it becomes a line of the script that sbatch gets, and the next line would run.\n"
                "  Write it in one line."
            )
    ours = {} if cluster == "slurm" else {"max_num_timeout": LOCAL_STARTS - 1, "signal_delay_s": LOCAL_WARNING}
    try:
        found = OmegaConf.to_container(OmegaConf.merge(schema, typed))
    except OmegaConfBaseException as error:
        raise UserError(f"hydra.launcher.{getattr(error, 'full_key', '')}: {str(error).splitlines()[0]}") from error
    assert isinstance(found, dict)
    if found["tasks_per_node"] != 1:
        raise UserError(
            f"hydra.launcher.tasks_per_node={found['tasks_per_node']}: dumbo wants one task a node, and starts the ranks there itself.\n"
            "  Write hydra.launcher.tasks_per_node=1 launch.num_processes=N; null takes one rank a GPU."
        )
    if found["timeout_min"] * 60 <= (warning := found.get("signal_delay_s", LOCAL_WARNING)):
        raise UserError(
            f"hydra.launcher.signal_delay_s={warning} is no shorter than the time limit "
            f"(timeout_min={found['timeout_min']}): the job would be told to save as soon as it begins."
        )
    return {**{str(key): value for key, value in found.items() if key != "_target_"}, **ours}


def arrays(tasks: Sequence[T]) -> Iterator[Sequence[T]]:
    """As many as one array takes, one after another."""
    for start in range(0, len(tasks), LONGEST_ARRAY):
        yield tasks[start : start + LONGEST_ARRAY]


def submit(tasks: Sequence[Task], nodes: int, parameters: Mapping[str, Any], folder: Path, cluster: str) -> list[str]:
    """Puts tasks into the queue.

    Args:
        tasks: of one shape, as many as one array takes.
        nodes: of each.
        parameters: as `checked_parameters` gives them.
        folder: submitit's, of this sweep.
        cluster: "slurm", or "local": processes on this machine.

    Returns:
        their numbers, in order.

    Raises:
        UserError: SLURM does not take them; the folder is another user's.
    """
    import submitit

    _make_own(folder)
    try:
        with redirect_stderr(io.StringIO()):  # submitit repeats what sbatch says
            executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            executor.update_parameters(**_told(nodes, parameters, cluster))
            return [job.job_id for job in executor.submit_array(list(tasks))]
    except RuntimeError as error:  # sbatch refuses, or there is none
        if 'Could not detect "srun"' in str(error):
            raise UserError(
                "hydra/launcher=submitit_slurm: there is no SLURM on this machine (srun is not in the PATH).\n"
                "  Write the same on a machine of the cluster, or leave hydra/launcher out."
            ) from error
        said = " ".join(line.removeprefix("sbatch: error: ") for line in str(error).splitlines())
        raise UserError(f"SLURM does not take the job: {said}\n  What it is told stands in hydra.launcher.*") from error


def _make_own(folder: Path) -> None:
    """Words of the command line lie there, and what the jobs load and run."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise UserError(
            f"hydra.launcher.submitit_folder: {folder} is another user's, who could change what your jobs run.\n"
            "  Write hydra.launcher.submitit_folder=FOLDER of your own that all nodes see."
        )
    folder.chmod(0o700)


def _told(nodes: int, parameters: Mapping[str, Any], cluster: str) -> dict[str, Any]:
    """The parameters in submitit's names."""
    own = {"submitit_folder", "max_num_timeout", *(["signal_delay_s"] if cluster == "local" else [])}
    shared = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "stderr_to_stdout", "tasks_per_node")
    told = {key if key in shared else f"{cluster}_{key}": value for key, value in parameters.items() if key not in own}
    told["nodes"] = nodes
    told.pop(f"{cluster}_nodes", None)
    if cluster == "slurm":
        told["slurm_additional_parameters"] = {"requeue": True, **(parameters.get("additional_parameters") or {})}
        # srun does not take it from sbatch any more (SLURM 22.05): a task would have one core.
        cores = parameters.get("cpus_per_task")
        told["slurm_srun_args"] = [f"--cpus-per-task={cores}"] * bool(cores) + [f"--wait={LEFT_ALONE}"] * (nodes > 1)
    return told
