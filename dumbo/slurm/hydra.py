"""What the launchers `submitit_slurm` and `submitit_local` do with the jobs that Hydra hands them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from dumbo.outputs.secrets import masked_words
from dumbo.override_text import value_text
from dumbo.slurm.sweep import submit_jobs, watch
from dumbo.sweep.ledger import Ledger, Row
from dumbo.sweep.local import Sweep, _is_own, _suffix


def run_jobs(
    job_overrides: Sequence[Sequence[str]],
    first_number: int,
    nodes_of: Callable[[Sequence[str]], int],
    parameters: Mapping[str, Any],
    cluster: str,
) -> list[JobReturn]:
    sweep = Sweep.current()
    sweep.folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger.open(sweep.folder)
    jobs = [[word for word in overrides if _is_own(word)] for overrides in job_overrides]
    common = set.intersection(*(set(job) for job in jobs)) if len(jobs) > 1 else set(jobs[0])
    todo = []
    for index, job in enumerate(jobs):
        number = first_number + index
        name = f"{number:03d}{_suffix(masked_words([w for w in job if w not in common]))}"
        words = [f"--config-dir={folder}" for folder in sweep.command.config_dirs]
        words += ["train", *([str(sweep.command.file)] if sweep.command.file else [])]
        words += [*job, *sweep._places(), f"run_dir={value_text(str(sweep.folder / name))}", "resume=auto"]
        todo.append((Row(number=number, name=name, overrides=job), words, nodes_of(list(job_overrides[index]))))
    submit_jobs(sweep.folder, ledger, todo, parameters, cluster, 0)
    sweep.console.row("sweep", f"{len(jobs)} jobs in {sweep.folder}")

    def tell(row: Row) -> None:
        sweep.console.row("", f"{row.name}  {row.state}  {row.device}  {row.error or ''}")

    watch(sweep.folder, ledger, "eval_loss", tell)
    sweep.outcomes += [(row.name, row.exit_code or (0 if row.state == "done" else 1), row.metrics) for row in ledger]
    returns = []
    for row, job in zip(ledger, jobs, strict=True):
        ret = JobReturn(overrides=job, status=JobStatus.COMPLETED)
        ret.return_value = row.result if row.result is not None else math.nan
        returns.append(ret)
    return returns
