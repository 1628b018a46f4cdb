"""A sweep's folder: sweep.json and ledger.jsonl where it has them, its runs' folders either way."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from dumbo.outputs.report.reading import Facts, as_number, end_of, json_object
from dumbo.outputs.report.several.jobs import Job, Several, job_of, less_is_better
from dumbo.outputs.report.several.places import runs_within
from dumbo.sweep.ledger import Ledger, Row

LAST_LINES = 12
LOG_END = 16 * 2**10
METRICS = ("eval_loss", "train_loss")


def sweep_of(folder: Path, metric: str | None, direction: str | None) -> Several:
    """Everything of a sweep.

    Args:
        metric, direction: what to compare by; None: as the sweep says.

    Raises:
        UserError: the ledger is not what a sweep writes.
    """
    faults: list[str] = []
    told, fault = json_object(folder / "sweep.json")
    faults += [fault] if fault else []
    jobs = [_ledger_job(folder, row, faults) for row in Ledger.open(folder)]
    known = {job.path for job in jobs}
    jobs += [job_of(path, str(path.relative_to(folder)), faults) for path in runs_within(folder) if path not in known]
    jobs = [job if job.error or job.state in ("done", "running", "waiting") else replace(job, error=last_lines(folder, job))
            for job in jobs]  # fmt: skip
    chosen = metric or told.text("metric") or usual_metric(jobs)
    minimize = less_is_better(chosen, direction or (told.get("direction") if metric is None else None))
    jobs = [replace(job, result=result_of(job, chosen, own=metric is None)) for job in jobs]
    swept = tuple(str(key) for key in told.list("swept"))
    return Several(folder.name, folder, jobs, chosen, minimize, True, told, swept, faults)


def _ledger_job(folder: Path, row: Row, faults: list[str]) -> Job:
    told = Facts(asdict(row))
    name = told.text("name") or f"job {told.get('number')}"
    path = folder / name
    job = job_of(path, name, faults) if _is_inside(path, folder) and path.is_dir() else Job(name, None, "waiting")
    seconds = as_number(told.get("seconds"))
    return replace(
        job,
        state=told.text("state") or job.state,
        words=tuple(str(word) for word in told.list("overrides")),
        result=as_number(told.get("result")),
        seconds=seconds if seconds else job.seconds,
        error="" if told.get("state") == "done" else job.error or told.text("error") or "",
        row=told,
    )


def _is_inside(path: Path, folder: Path) -> bool:
    """A ledger from somewhere else must not make the page show files of this machine."""
    return path.resolve().is_relative_to(folder.resolve())


def result_of(job: Job, metric: str, *, own: bool) -> float | None:
    """The ledger's result, or the metric of run.json; of a job that is not done (or was pruned) there is none."""
    if job.state not in ("done", "running"):
        return None
    found = job.result if own and job.result is not None else job.metrics.number(metric)
    return None if found is None else float(found)


def usual_metric(jobs: list[Job]) -> str:
    """`eval_loss` where a run has one."""
    return next((name for name in METRICS if any(job.metrics.number(name) is not None for job in jobs)), METRICS[0])


def last_lines(folder: Path, job: Job) -> str:
    """What a job printed last (its log beside its folder)."""
    if not _is_inside(folder / f"{job.name}.log", folder):
        return ""
    lines = [line for line in end_of(folder / f"{job.name}.log", LOG_END).splitlines() if line.strip()]
    return "\n".join(lines[-LAST_LINES:])
