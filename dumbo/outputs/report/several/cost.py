"""What runs cost: hours of GPUs or CPU cores, tokens; of each, and of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dumbo.outputs.report.several.jobs import Job, Several
from dumbo.outputs.report.tables import Row, Section, Table, rows
from dumbo.outputs.report.values import NOTHING, duration, figure, moment


@dataclass(frozen=True)
class Cost:
    """Of one run, or of several.

    Attributes:
        seconds: by the clock, of all attempts.
        gpu_hours: those seconds times the GPUs that were used; None on a CPU.
        cpu_hours: those seconds times the processes, of runs without a GPU.
        tokens: trained on or not, padding not counted.
    """

    seconds: float | None
    gpu_hours: float | None
    cpu_hours: float | None
    tokens: float | None
    attempts: int


def cost_of(job: Job) -> Cost:
    """As run.json tells it: a rank has a GPU of its own, or a process on the CPU."""
    seconds = job.seconds if job.seconds is not None else _between(job)
    ranks = job.facts.number("batch", "ranks") or 1
    gpu = job.facts.get("hardware", "gpu") is not None
    hours = None if seconds is None else seconds * ranks / 3600
    tokens = job.metrics.number("tokens")
    return Cost(
        seconds,
        hours if gpu else None,
        None if gpu else hours,
        tokens,
        int(job.row.number("attempt") or 1 if job.path else 0),
    )


def _between(job: Job) -> float | None:
    started, ended = moment(job.facts.get("started")), moment(job.facts.get("ended"))
    return (ended - started).total_seconds() if started is not None and ended is not None else None


def total(costs: Sequence[Cost]) -> Cost:
    def summed(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    return Cost(
        summed([one.seconds for one in costs]),
        summed([one.gpu_hours for one in costs]),
        summed([one.cpu_hours for one in costs]),
        summed([one.tokens for one in costs]),
        sum(one.attempts for one in costs),
    )


def cost(several: Several) -> Section:
    """In all, and of each."""
    costs = [cost_of(job) for job in several.jobs]
    whole = total(costs)
    lost = total([one for job, one in zip(several.jobs, costs, strict=True) if job.state in ("failed", "interrupted")])
    shown = {
        "jobs": figure(len(several.jobs)),
        "attempts": figure(whole.attempts) if whole.attempts > len(several.jobs) else None,
        "time of all jobs": duration(whole.seconds),
        "from the first start to the last end": _span(several),
        "at once, on average": _at_once(several, whole),
        "GPU hours": hours(whole.gpu_hours),
        "CPU hours (a process each)": hours(whole.cpu_hours),
        "of that in jobs that did not finish": duration(lost.seconds) if lost.seconds else None,
        "tokens": figure(whole.tokens) if whole.tokens is not None else None,
        "tokens an hour of a device": _an_hour(whole),
    }
    head = ("run", "device", "time", "GPU hours", "CPU hours", "tokens", "tokens a second", "peak memory")
    lines = [
        _line(job, one)
        for job, one in sorted(zip(several.jobs, costs, strict=True), key=lambda pair: -(pair[1].seconds or 0))
    ]
    tables = (
        Table("In all", rows(shown)),
        Table("Of each, the longest first", lines, head, numbers=tuple(range(2, 8))),
    )
    return Section("cost", "Cost", tables)


def hours(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _line(job: Job, one: Cost) -> Row:
    memory = job.metrics.number("peak_memory_gib")
    speed = job.metrics.number("tokens_per_s")
    device = job.row.text("device") or job.facts.text("hardware", "gpu") or job.facts.text("hardware", "cpu") or NOTHING
    return Row((
        job.name, device, duration(one.seconds), hours(one.gpu_hours) or NOTHING, hours(one.cpu_hours) or NOTHING,
        figure(one.tokens), figure(round(speed)) if speed is not None else NOTHING, f"{figure(memory)} GiB" if memory is not None else NOTHING,
    ))  # fmt: skip


def _ends(several: Several) -> float | None:
    started = [
        at for job in several.jobs if (at := moment(job.row.get("started") or job.facts.get("started"))) is not None
    ]
    ended = [at for job in several.jobs if (at := moment(job.row.get("ended") or job.facts.get("ended"))) is not None]
    return (max(ended) - min(started)).total_seconds() if started and ended else None


def _span(several: Several) -> str | None:
    seconds = _ends(several) if several.is_sweep else None
    return duration(seconds) if seconds is not None and seconds > 0 else None


def _at_once(several: Several, whole: Cost) -> str | None:
    seconds = _ends(several) if several.is_sweep else None
    return f"{whole.seconds / seconds:.2g}" if seconds and whole.seconds else None


def _an_hour(whole: Cost) -> str | None:
    spent = (whole.gpu_hours or 0) + (whole.cpu_hours or 0)
    return figure(round(whole.tokens / spent)) if spent and whole.tokens is not None else None
