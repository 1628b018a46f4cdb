"""Runs beside one another: every key of their configs that differs, and what else they were made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dumbo.outputs.report.several.jobs import Job, Several
from dumbo.outputs.report.several.varied import ABSENT, OTHER_VERBS, PLACES, shown, value_of
from dumbo.outputs.report.tables import MOST_ROWS, Row, Section, Table
from dumbo.outputs.report.values import NOTHING, cut, duration, figure, moment, percent

MOST_COLUMNS = 24
OF_METRICS = ("seconds",)
MADE_WITH = ("versions", "git", "hardware")


def metrics(several: Several) -> Section:
    """Final numbers side by side."""
    jobs = several.jobs[:MOST_COLUMNS]
    names = dict.fromkeys(
        str(name) for job in jobs for name in job.metrics.values if job.metrics.number(name) is not None
    )
    names = {several.metric: None, **names} if several.metric in names else names
    lines = [Row(("state", *(job.state for job in jobs)))]
    lines += [
        Row((name.replace("_", " "), *(_number(name, job.metrics.get(name)) for job in jobs)))
        for name in list(names)[:MOST_ROWS]
    ]
    table = Table("Final numbers", lines, ("", *(job.name for job in jobs)), numbers=tuple(range(1, len(jobs) + 1)))
    return Section("numbers", "Numbers side by side", (table,) if len(names) else (), _more(several))


def _number(name: str, value: Any) -> str:
    if name in OF_METRICS or name.endswith("_seconds"):
        return duration(value)
    return percent(value) if name == "exact_match" else figure(value)


def config(several: Several) -> Section:
    """Key by key, a column a run; only what differs."""
    jobs = several.jobs[:MOST_COLUMNS]
    head = ("key", *(job.name for job in jobs))
    known = [job for job in several.jobs if job.config]
    lines = _differing(jobs, [job.config for job in jobs], (*PLACES, *OTHER_VERBS))
    lead = (
        []
        if lines
        else ["Their configs are the same." if len(known) == len(several.jobs) else "There are no configs to compare."]
    )
    surroundings = [_surroundings(job) for job in jobs]
    tables = (
        Table("Keys of the config that differ", lines, head),
        Table("What else differs", _differing(jobs, surroundings, ()), head),
    )
    return Section("differences", "Differences", tables, (*_data(several), *lead))


def _data(several: Several) -> list[str]:
    """Losses on different data are no comparison."""
    prints = {print_ for job in several.jobs if (print_ := job.facts.text("data_fingerprint"))}
    if len(prints) < 2:
        return []
    return [f"The runs do not share one set of data ({len(prints)} fingerprints of data, tokenizer and template): their losses are of "
            "different tokens."]  # fmt: skip


def _differing(jobs: Sequence[Job], those: Sequence[Mapping[str, Any]], without: tuple[str, ...]) -> list[Row]:
    keys = dict.fromkeys(key for one in those for key in one if key.split(".")[0] not in without)
    found = []
    for key in keys:
        values = [shown(value_of(one[key])) if key in one else ABSENT if one else NOTHING for one in those]
        if len(set(values) - {NOTHING}) > 1:
            found.append(Row((cut(key, 200), *values)))
    return found


def _surroundings(job: Job) -> dict[str, Any]:
    """Versions, commit, hardware, data, what became of each patch."""
    facts = {f"{part}.{name}": value for part in MADE_WITH for name, value in job.facts.at(part).values.items()}
    facts |= {f"patches.{name}": value for name, value in job.facts.at("patches").values.items()}
    facts |= {
        key: job.facts.get(key) for key in ("data_fingerprint", "parallel", "seed") if job.facts.get(key) is not None
    }
    if (started := moment(job.facts.get("started"))) is not None:
        facts["started"] = f"{started:%Y-%m-%d %H:%M}"
    return facts


def _more(several: Several) -> tuple[str, ...]:
    more = len(several.jobs) - MOST_COLUMNS
    return (
        (f"The first {MOST_COLUMNS} of {len(several.jobs)} runs; all of them are in the table files.",)
        if more > 0
        else ()
    )
