"""The page of several runs: its parts, in order, into the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dumbo.outputs.printable import shortened
from dumbo.outputs.report.results import Headline
from dumbo.outputs.report.several import differences
from dumbo.outputs.report.several.board import boards
from dumbo.outputs.report.several.cost import cost, cost_of, hours, total
from dumbo.outputs.report.several.curves import as_json, overlaid
from dumbo.outputs.report.several.effects import Effect, Effects, effects
from dumbo.outputs.report.several.failures import failures
from dumbo.outputs.report.several.intervals import Mean
from dumbo.outputs.report.several.jobs import Several
from dumbo.outputs.report.several.parallel import parallel
from dumbo.outputs.report.several.setup import setup
from dumbo.outputs.report.several.varied import Varied
from dumbo.outputs.report.shell import rendered
from dumbo.outputs.report.tables import Row, Section, Table
from dumbo.outputs.report.values import cut, duration, figure, moment, percent

MOST_EFFECTS, MOST_FAILURES = 12, 20
ENOUGH = 10
"""So many runs that nobody planned as a sweep are enough to tell effects."""
FEW = 8
"""So many runs have a colour each (page.js)."""


@dataclass(frozen=True)
class Shown:
    """An effect as the template has it."""

    varied: Varied
    said: str
    table: Table


def sections(several: Several) -> list[Section]:
    """The parts below curves and failures, those with something in them."""
    parts = (cost, setup) if several.is_sweep else (differences.metrics, differences.config, cost)
    return [section for part in parts if (section := part(several))]


def page(several: Several, keys: Sequence[Varied], files: str) -> str:
    """The whole page as HTML.

    Args:
        keys: what differs (varied.py).
        files: names of the leaderboard's files.
    """
    order = several.ordered()
    many = several.is_sweep or len(order) >= ENOUGH
    told = effects(several, keys, order) if many else Effects()
    charts = overlaid([job.curves for job in order])
    lines = parallel(several, keys, told) if many else None
    shown = [Shown(one.varied, _said(one), _table(one)) for one in told.each[:MOST_EFFECTS]]
    state, text = _state(several)
    return rendered(
        "several/page.html.j2",
        styles=["page.css", "several/page.css"],
        scripts=["figures.js", *(f"several/{name}.js" for name in ("runs", "curves", "parallel", "effects", "page"))],
        told={
            "title": several.title, "is_sweep": several.is_sweep, "state": state, "state_text": text, "when": _when(several),
            "folder": str(several.place) if several.is_sweep else "", "faults": several.faults[:20], "headlines": headlines(several),
            "lead": _lead(several, keys), "boards": boards(several, keys, told), "files": files, "effects": _Each(shown),
            "about_effects": _about(several, told), "most_effects": MOST_EFFECTS, "parallel": lines is not None,
            "parallel_said": _parallel_said(several, lines), "colours": _colours(several), "charts": charts,
            "failures": failures(several), "most_failures": MOST_FAILURES, "sections": sections(several),
        },
        block={
            "metric": several.metric,
            "jobs": [{"name": cut(job.name, 120), "result": job.result, "state": job.state} for job in order],
            "charts": as_json(charts),
            "effects": [_effect_json(one) for one in told.each[:MOST_EFFECTS]],
            "parallel": lines,
        },
    )  # fmt: skip


@dataclass(frozen=True)
class _Each:
    each: list[Shown]


def headlines(several: Several) -> list[Headline]:
    """The numbers that are looked for first."""
    ranked = several.ranked()
    whole = total([cost_of(job) for job in several.jobs])
    done = sum(job.state == "done" for job in several.jobs)
    found = []
    if ranked:
        best, worst = ranked[0], ranked[-1]
        value = percent(best.result) if several.metric == "exact_match" else figure(best.result)
        found.append(Headline(f"best {several.metric.replace('_', ' ')}", value, shortened(best.name, 44)))
        if len(ranked) > 1:
            middle = ranked[len(ranked) // 2]
            found.append(Headline("median and worst", figure(middle.result), f"worst {figure(worst.result)}"))
    found.append(Headline("done", figure(done), f"of {len(several.jobs):,}"))
    failed = sum(job.state == "failed" for job in several.jobs)
    if failed:
        found.append(Headline("failed", figure(failed), "their last lines are below"))
    if whole.seconds is not None:
        found.append(Headline("time of all", duration(whole.seconds)))
    if whole.gpu_hours is not None:
        found.append(Headline("GPU hours", hours(whole.gpu_hours) or ""))
    if whole.cpu_hours is not None:
        found.append(Headline("CPU hours", hours(whole.cpu_hours) or ""))
    if whole.tokens is not None:
        found.append(Headline("tokens", figure(whole.tokens)))
    return found


def _state(several: Several) -> tuple[str, str]:
    states = [job.state for job in several.jobs]
    for state, colour in (("running", ""), ("failed", "bad"), ("interrupted", "warn"), ("waiting", "")):
        if count := states.count(state):
            return colour, f"{count:,} {state}"
    return "good", "all done" if states and set(states) == {"done"} else "ended"


def _when(several: Several) -> str:
    starts = [
        several.sweep.get("started"),
        *(job.row.get("started") or job.facts.get("started") for job in several.jobs),
    ]
    known = [at for start in starts if (at := moment(start)) is not None]
    return f"{min(known):%Y-%m-%d %H:%M} {min(known).tzname()}" if known else ""


def _lead(several: Several, keys: Sequence[Varied]) -> list[str]:
    best = "lowest" if several.minimize else "highest"
    told = [f"By {several.metric}, the {best} first."]
    if keys:
        some = ", ".join(f"{key.key} ({len(key.distinct)})" for key in keys[:12])
        more = f" and {len(keys) - 12} more" if len(keys) > 12 else ""
        told.append(f"What differs, and how many values it has: {some}{more}.")
    return told


def _colours(several: Several) -> str:
    return "each run has its colour" if len(several.jobs) <= FEW else "the best runs are blue, the worst orange"


def _parallel_said(several: Several, lines: dict[str, Any] | None) -> str:
    if lines is None:
        return ""
    without = len(several.jobs) - len(lines["lines"])
    said = f"{len(lines['lines']):,} runs"
    said += f"; {without:,} without a result are not drawn" if without else ""
    return said + (f"; {lines['left']} keys that explain less have no axis" if lines["left"] else "")


def _about(several: Several, told: Effects) -> str:
    if told.over_seeds:
        return (
            f"A diamond is the mean of {several.metric} over the runs with that value; its bar is the 95% interval that comes from the "
            f"seeds alone (standard deviation between seeds {figure(told.spread)}, pooled over all settings), the other parameters being "
            "what they were here. Beside the best: the mean difference of pairs of runs that share everything else, ± its standard error."
        )
    return (
        f"A diamond is the mean of {several.metric} over the runs with that value; its bar is a 95% interval of that mean, other "
        "parameters varying as they did here (Student's t, the bootstrap from 8 runs on). No seeds repeat: how much is noise is not "
        "known. Beside the best: the mean difference of pairs of runs that share everything else, ± its standard error."
    )


def _said(effect: Effect) -> str:
    return f"explains {100 * effect.share:.0f}% of the variance" if effect.share is not None else ""


def _table(effect: Effect) -> Table:
    """The chart in numbers."""
    beside = any(level.beside is not None for level in effect.levels)
    head = (effect.varied.label, "mean ± s.e.", "95% interval", "n", *(("beside the best",) if beside else ()))
    lines = []
    for level in effect.levels:
        mean = level.mean
        error = f" ± {mean.error:.2g}" if mean.error is not None else ""
        cells = [level.label, f"{figure(mean.value)}{error}", _interval(mean), figure(mean.count)]
        lines.append(Row((*cells, *((_difference(level.beside),) if beside else ()))))
    return Table(f"Effect of {effect.varied.key}", lines, head, numbers=tuple(range(1, len(head))))


def _interval(mean: Mean) -> str:
    return "–" if mean.low is None else f"{figure(mean.low)} to {figure(mean.high)}"


def _difference(mean: Mean | None) -> str:
    if mean is None:
        return "–"
    error = f" ± {mean.error:.2g}" if mean.error is not None else ""
    return f"{mean.value:+.3g}{error} ({mean.count})"


def _effect_json(effect: Effect) -> dict[str, Any]:
    xs = [point[0] for point in effect.points]
    low, high = min(xs), max(xs)
    if effect.log:
        edges = [low / (high / low) ** 0.05, high * (high / low) ** 0.05]
    else:
        room = (high - low) * (0.06 if effect.numeric else 0.5 / max(1.0, high - low)) or 0.5
        edges = [low - room, high + room]
    named = [[level.at, level.label[:16]] for level in effect.levels]
    return {
        "points": [[x, _digits(y), place] for x, y, place in effect.points],
        "means": [
            [level.at, _digits(level.mean.value), _digits(level.mean.low), _digits(level.mean.high)]
            for level in effect.levels
            if level.mean.count > 1
        ],
        "ticks": None if effect.scatter else named,
        "range": edges,
        "log": effect.log,
        "scatter": effect.scatter,
    }


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
