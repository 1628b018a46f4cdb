"""What `sweep.*` and `sweep.search.*` in the config are; of the other verbs: `dumbo/options.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dumbo.at_least import at_least
from dumbo.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """A search (`-m hydra/sweeper=optuna`): how the values of each trial are chosen, and which trials are stopped early.

    Args:
        num_trials: trials in all, those of earlier invocations counted.
        sampler: "tpe": learns from the trials so far (tree-structured Parzen estimator); "random".
        random_trials: so many trials are finished before tpe learns from them.
        seed: of the sampler.
        pruner: "median": a trial worse than the median of the others at its step is stopped; "asha", "hyperband": the best
            third or so at each rung go on; "none".
        prune_after_trials: median: no trial is stopped before so many are finished.
        prune_after_step: no trial is stopped before this optimizer step (asha, hyperband: their first rung); null: as the
            pruner has it, from the first evaluation on.
    """

    num_trials: int = 20
    sampler: Literal["tpe", "random"] = "tpe"
    random_trials: int = 10
    seed: int = 0
    pruner: Literal["median", "asha", "hyperband", "none"] = "median"
    prune_after_trials: int = 5
    prune_after_step: int | None = None

    def __post_init__(self) -> None:
        at_least("num_trials", self.num_trials, 1)
        at_least("random_trials", self.random_trials, 1)
        at_least("seed", self.seed, 0)
        at_least("prune_after_trials", self.prune_after_trials, 1)
        if self.prune_after_step is not None:
            at_least("prune_after_step", self.prune_after_step, 1)


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """A sweep (`-m`), and `dumbo sweep status|wait|cancel FOLDER`.

    Args:
        retries: a job that fails or is interrupted is started again from its checkpoint, at most so often in one invocation.
        warm: jobs are forked from one process that has imported what runs import; False: each starts Python anew.
        force: go on although the base config changed; jobs that are done stay, all others begin anew.
        metric: of run.json's metrics; jobs are compared by it.
        direction: "minimize" or "maximize" the metric.
        gpus_per_job: GPUs that each job of the pool has to itself.
        jobs_per_gpu: jobs that share one GPU.
        cpu_slots: jobs at once on the CPU, threads divided; null: the GPUs, or one job at a time without any.
        detach: with hydra/launcher=submitit_slurm, put the jobs into the queue and return; `dumbo sweep wait` watches them.
        format: of `dumbo sweep status`: "text" or "json".
        search: of hydra/sweeper=optuna.
    """

    retries: int = 1
    warm: bool = True
    force: bool = False
    metric: str = "eval_loss"
    direction: Literal["minimize", "maximize"] = "minimize"
    gpus_per_job: int = 1
    jobs_per_gpu: int = 1
    cpu_slots: int | None = None
    detach: bool = False
    format: Literal["text", "json"] = "text"
    search: SearchOptions = field(default_factory=SearchOptions)

    def __post_init__(self) -> None:
        at_least("retries", self.retries, 0)
        for name in ("gpus_per_job", "jobs_per_gpu"):
            at_least(name, getattr(self, name), 1)
        if self.cpu_slots is not None:
            at_least("cpu_slots", self.cpu_slots, 1)
        if self.gpus_per_job > 1 and self.jobs_per_gpu > 1:
            raise UserError(
                f"gpus_per_job={self.gpus_per_job} and jobs_per_gpu={self.jobs_per_gpu}: a job has several GPUs, or shares one.\n"
                "  Leave one of them at 1."
            )
