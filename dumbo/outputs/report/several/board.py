"""The leaderboard on the page: best first; and where seeds repeat, the settings, best mean first."""

from __future__ import annotations

from collections.abc import Sequence

from dumbo.outputs.report.several.cost import cost_of
from dumbo.outputs.report.several.effects import Effects
from dumbo.outputs.report.several.jobs import Job, Several
from dumbo.outputs.report.several.varied import Varied, shown
from dumbo.outputs.report.tables import Row, Table
from dumbo.outputs.report.values import NOTHING, cut, duration, figure, percent

MOST_ROWS, MOST_KEYS, MOST_SETTINGS = 2000, 8, 200
ALSO = ("eval_loss", "train_loss", "exact_match", "tokens_per_s")
STATES = {"failed": "bad", "interrupted": "warn"}


def boards(several: Several, keys: Sequence[Varied], told: Effects) -> list[Table]:
    """Settings (where seeds repeat), then runs."""
    tables = []
    if told.settings and any(mean.count > 1 for _, mean in told.settings):
        labels = list(told.settings[0][0])
        head = ("place", *labels, f"mean {several.metric}", "± s.e.", "95% interval", "seeds")
        lines = [
            Row((str(number), *setting.values(), figure(mean.value), f"{mean.error:.2g}", f"{figure(mean.low)} to {figure(mean.high)}",
                 figure(mean.count)))
            for number, (setting, mean) in enumerate(told.settings[:MOST_SETTINGS], 1)
        ]  # fmt: skip
        more = f", the first {MOST_SETTINGS} of {len(told.settings):,}" if len(told.settings) > MOST_SETTINGS else ""
        tables.append(
            Table(f"Settings, each the mean of its seeds{more}", lines, head, tuple(range(len(labels) + 1, len(head))))
        )
    return [*tables, _runs(several, keys)]


def _runs(several: Several, keys: Sequence[Varied]) -> Table:
    order = several.ordered()
    place_of = {id(job): place for place, job in enumerate(several.jobs)}
    chosen = keys[:MOST_KEYS]
    also = [
        name for name in ALSO if name != several.metric and any(job.metrics.number(name) is not None for job in order)
    ]
    states = any(job.state != "done" for job in order)
    head = ("place", "run", *(("state",) if states else ()), *(key.label for key in chosen), several.metric.replace("_", " "),
            *(name.replace("_", " ").replace("per s", "a second") for name in also), "time")  # fmt: skip
    lines = []
    for number, job in enumerate(order[:MOST_ROWS], 1):
        values = (cut(shown(key.values[place_of[id(job)]]), 40) for key in chosen)
        name = cut(job.short if len(keys) <= MOST_KEYS else job.name, 100)
        cells = (str(number) if job.result is not None else NOTHING, name, *((job.state,) if states else ()), *values,
                 _number(several.metric, job.result), *(_number(name, job.metrics.number(name)) for name in also), _time(job))  # fmt: skip
        lines.append(Row(cells, STATES.get(job.state, "")))
    more = f", the first {MOST_ROWS:,} of {len(order):,}" if len(order) > MOST_ROWS else ""
    return Table(f"Runs, best first{more}", lines, head, tuple(range(len(head) - len(also) - 2, len(head))))


def _number(name: str, value: float | None) -> str:
    if value is None:
        return NOTHING
    return (
        percent(value) if name == "exact_match" else figure(round(value)) if name == "tokens_per_s" else figure(value)
    )


def _time(job: Job) -> str:
    return duration(cost_of(job).seconds)
