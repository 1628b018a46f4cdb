"""Where a sweep's jobs run at once: a slot for each, with the devices and threads that are its own.

GPUs        CUDA_VISIBLE_DEVICES names the slot's, out of those that the sweep sees itself
CPU slots   no GPU; the cores' threads are divided
one slot    everything, as for a run by itself
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from dumbo.errors import UserError
from dumbo.launch.gpus import NAMES, visible_gpus
from dumbo.sweep.options import SweepOptions

HIDDEN = dict.fromkeys(NAMES, "")


@dataclass(frozen=True)
class Slot:
    """Room for one job.

    Args:
        name: "GPU 0", "GPU 0,1", "cpu 1"; "": the whole machine.
        environment: what its jobs see besides the sweep's own environment.
    """

    name: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wants_pool(options: SweepOptions) -> bool:
    """Whether jobs run at once where nobody typed a launcher."""
    return visible_gpus() > 1 or _asks(options)


def _asks(options: SweepOptions) -> bool:
    return (options.cpu_slots or 0) > 1 or options.gpus_per_job > 1 or options.jobs_per_gpu > 1


def alone(options: SweepOptions, launcher: str = "process") -> list[Slot]:
    """One slot that has everything: of hydra/launcher=process, or of one whose jobs run elsewhere.

    Raises:
        UserError: the options ask for more than one.
    """
    if _asks(options) and launcher == "process":
        raise UserError(
            "hydra/launcher=process runs one job after another, and sweep.cpu_slots, gpus_per_job or jobs_per_gpu ask for the pool.\n"
            "  Leave hydra/launcher out, or write hydra/launcher=gpu_pool."
        )
    if _asks(options):
        raise UserError(
            f"hydra/launcher={launcher}: sweep.cpu_slots, gpus_per_job and jobs_per_gpu are of the pool on this machine.\n"
            "  Write hydra.launcher.gpus_per_node=N or cpus_per_task=N for each job, hydra.launcher.array_parallelism=N for jobs at once."
        )
    return [Slot()]


def slots(options: SweepOptions, launcher: str = "gpu_pool") -> list[Slot]:
    """The slots of the pool: of each GPU, or of several together; of the CPU where cpu_slots says so or there is no GPU.

    Raises:
        UserError: fewer GPUs than are asked for.
    """
    if launcher != "gpu_pool":
        return alone(options, launcher)
    found = gpus()
    if options.cpu_slots is None and not found and _asks(options):
        raise UserError(
            f"sweep.gpus_per_job={options.gpus_per_job}, sweep.jobs_per_gpu={options.jobs_per_gpu}, but no GPU is visible here.\n"
            "  For several jobs at once on the CPU write sweep.cpu_slots=N."
        )
    if options.cpu_slots is not None or not found:
        return _cpu_slots(options.cpu_slots or 1)
    each = options.gpus_per_job
    if each > len(found):
        raise UserError(
            f"sweep.gpus_per_job={each}, but {len(found)} GPU{'s are' if len(found) > 1 else ' is'} visible here.\n"
            f"  Write sweep.gpus_per_job={len(found)}, or sweep.cpu_slots=N for the CPU."
        )
    sets = [found[first : first + each] for first in range(0, len(found) - each + 1, each)]
    threads = divided(len(sets) * options.jobs_per_gpu)
    return [
        Slot(f"GPU {','.join(name for name, _ in one)}", {**_visible([entry for _, entry in one]), **threads})
        for _ in range(options.jobs_per_gpu)
        for one in sets
    ]


def _cpu_slots(count: int) -> list[Slot]:
    hidden = HIDDEN if gpus() else {}
    return [Slot(f"cpu {number}", {**hidden, **divided(count)}) for number in range(count)]


def divided(count: int) -> dict[str, str]:
    """Threads of each of so many jobs; what the user set stays."""
    if count < 2 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, cores() // count))}


def gpus() -> list[tuple[str, str]]:
    """(what it is called, how CUDA_VISIBLE_DEVICES names it) of each GPU that this process sees."""
    for name in NAMES:
        if (named := os.environ.get(name)) is not None:
            entries = [entry.strip() for entry in named.split(",")][: visible_gpus()]
            return [(entry if entry.isdigit() else str(place), entry) for place, entry in enumerate(entries)]
    return [(str(number), str(number)) for number in range(visible_gpus())]


def _visible(entries: list[str]) -> dict[str, str]:
    name = next((name for name in NAMES if name in os.environ), NAMES[0])
    return {name: ",".join(entries)}
