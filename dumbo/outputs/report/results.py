"""How the run went: its headline numbers, its error, what was evaluated afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dumbo.outputs.report.folder import Folder
from dumbo.outputs.report.reading import Facts
from dumbo.outputs.report.tables import Row, Section, Table, flat, rows, spoken
from dumbo.outputs.report.values import cut, duration, figure, moment, percent, plain

STATUS = {
    "finished": ("good", "The run finished."),
    "preempted": ("warn", "The run was stopped and saved; it can go on."),
    "failed": ("bad", "The run failed."),
    "running": ("", "The run is going on; this is how far it was."),
    "lost": ("bad", "The run ended without a word: its process is gone (killed, or the machine)."),
}


@dataclass(frozen=True)
class Headline:
    """A number at the top of the page.

    Attributes:
        note: where it came from ("from 6.178").
    """

    label: str
    value: str
    note: str = ""


def headlines(run: Folder) -> list[Headline]:
    """The numbers that are looked for first. Those of a run without final ones come from its curves."""
    end = run.facts.at("metrics")
    numbers = run.numbers

    def final(name: str, column: str | None) -> float | int | None:
        found = end.number(name)
        return found if found is not None or column is None else numbers.last(column)

    found = []
    if (loss := final("train_loss", "loss")) is not None:
        first = end.number("first_loss") or numbers.first("loss")
        found.append(Headline("training loss", figure(loss), f"from {figure(first)}"))
    if (loss := final("eval_loss", "eval_loss")) is not None:
        before = end.number("eval_loss_before")
        found.append(Headline("held-out loss", figure(loss), f"from {figure(before)}" if before is not None else ""))
    if (match := end.number("exact_match")) is not None:
        found.append(Headline("exact match", percent(match), f"of {figure(end.get('questions'))} held-out questions"))
    steps = end.number("steps") or numbers.last_step()
    if steps:
        planned = run.facts.number("planned_steps")
        found.append(Headline("steps", figure(steps), f"of {figure(planned)} planned" if planned is not None else ""))
    if (tokens := end.number("trained_tokens")) is not None:
        found.append(Headline("trained tokens", figure(tokens), f"of {figure(end.get('tokens'))} seen"))
    if (speed := final("tokens_per_s", "tokens_per_s")) is not None:
        mfu = end.number("mfu")
        found.append(
            Headline("tokens a second", figure(round(speed)), f"MFU {percent(mfu)}" if mfu is not None else "")
        )
    if (memory := final("peak_memory_gib", "peak_memory_gib")) is not None:
        found.append(Headline("peak memory", f"{figure(memory)} GiB"))
    if (took := took_of(run)) is not None:
        found.append(Headline("time", duration(took)))
    return found


def took_of(run: Folder) -> float | None:
    """Seconds from start to end."""
    if (seconds := run.facts.number("metrics", "seconds")) is not None:
        return float(seconds)
    started, ended = moment(run.facts.get("started")), moment(run.facts.get("ended"))
    return (ended - started).total_seconds() if started is not None and ended is not None else None


def when(run: Folder) -> str:
    """`2026-11-29 03:37 UTC`."""
    started = moment(run.facts.get("started"))
    return f"{started:%Y-%m-%d %H:%M} {started.tzname()}" if started is not None else ""


def evaluation(run: Folder) -> Section:
    """evaluation.json, or what run.json tells of it."""
    told = run.evaluation or run.facts.at("evaluation")
    tables = [Table("Held-out data, as dumbo evaluate measured it", _measured(told))] if told else []
    if sources := told.at("sources"):
        head = ("source", "loss", "perplexity", "exact match", "questions", "rows")
        parts = [(str(name), Facts(one)) for name, one in sources.values.items() if isinstance(one, dict)]
        lines = [Row((cut(name, 200), figure(one.get("loss")), figure(one.get("perplexity")), percent(one.get("exact_match")),
                      figure(one.get("questions")), figure(one.get("rows")))) for name, one in parts[:200]]  # fmt: skip
        tables.append(Table("For each source", lines, head, numbers=(1, 2, 3, 4, 5)))
    if tasks := told.at("tasks"):
        tables.append(flat("Tasks of lm-eval", tasks.values))
    lead: tuple[str, ...] = ()
    if told.get("data", "as_in_training") is False:
        lead = ("The data that was evaluated is not the data of the run.",)
    return Section("evaluation", "Evaluation", tuple(tables), lead)


def _measured(told: Facts) -> list[Row]:
    shown: dict[str, Any] = {
        "held-out loss": told.number("loss"),
        "perplexity": told.number("perplexity"),
        "exact match": percent(told.get("exact_match")) if told.number("exact_match") is not None else None,
        "questions": told.number("questions"),
        "how an answer is found": told.text("extractor"),
        "answers that had not ended": told.number("answers_unfinished"),
        "precision": told.text("precision"),
        "when": told.text("started") or told.text("at"),
        "took": duration(told.get("seconds")) if told.number("seconds") is not None else None,
    }
    return rows(shown)


def export(run: Folder) -> Section:
    """What was exported, and how it was proven the same."""
    told = run.export or run.facts.at("export")
    return Section("export", "Export", (flat("The exported model", told.values),) if told else ())


def final_numbers(run: Folder) -> Table:
    """All of run.json's metrics."""
    metrics = run.facts.at("metrics").values
    return Table(
        "All final numbers", [Row((spoken(str(name)), plain(value))) for name, value in list(metrics.items())[:200]]
    )
