"""The effect of each parameter: mean result of each of its values, how sure that is, and the difference between values
where everything else was the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dumbo.outputs.report.curves import Numbers
from dumbo.outputs.report.several.intervals import Mean, explained, mean_of, mean_over_seeds, pooled
from dumbo.outputs.report.several.jobs import Job, Several
from dumbo.outputs.report.several.varied import Value, Varied, shown

MANY = 8
"""A numeric key with more values than this is shown as a scatter, and told in ranges."""
RANGES = 5
DECADE = 10.0
"""Values of a key that span this factor or more get a logarithmic axis."""
MOST_VALUES = 30
Setting = tuple[Value | None, ...]


@dataclass(frozen=True)
class Level:
    """One value of a key, or a range of its values.

    Attributes:
        beside: mean difference from the best level where all other keys are the same (None: no such pairs).
    """

    label: str
    at: float
    mean: Mean
    beside: Mean | None = None


@dataclass(frozen=True)
class Effect:
    """What a key does to the result.

    Attributes:
        levels: in the order of the values.
        share: of the results' variance that it explains; None where that cannot be said.
        points: (x, result, place of the job in the page's order).
        numeric, log: which axis it has.
        scatter: whether it has too many values for a mean of each.
    """

    varied: Varied
    levels: list[Level]
    share: float | None
    points: list[tuple[float, float, int]]
    numeric: bool
    log: bool
    scatter: bool


SettingMean = tuple[dict[str, str], Mean]


@dataclass(frozen=True)
class Effects:
    """All of them, the one that explains most first.

    Attributes:
        over_seeds: whether intervals are those of the seeds.
        spread: standard deviation between seeds.
        settings: (values of the keys but the seed, mean over its seeds), best first; empty where no seed repeats.
    """

    each: list[Effect] = field(default_factory=list)
    over_seeds: bool = False
    spread: float = 0.0
    settings: list[SettingMean] = field(default_factory=list)


@dataclass(frozen=True)
class _Results:
    """The runs with a result, (N,) each.

    Attributes:
        places: of the job in its own order. drawn: in the page's order.
        settings: values of all keys but the seed; None where no seed repeats.
        spread, freedom: standard deviation between seeds, and its degrees of freedom.
    """

    places: list[int]
    drawn: list[int]
    results: Numbers
    settings: list[Setting] | None
    spread: float
    freedom: int
    minimize: bool

    def mean(self, members: Sequence[int]) -> Mean:
        if self.settings is None:
            return mean_of(self.results[members].tolist())
        groups = _grouped([self.settings[i] for i in members], self.results[members])
        return mean_over_seeds(list(groups.values()), self.spread, self.freedom)


def effects(several: Several, keys: Sequence[Varied], order: Sequence[Job]) -> Effects:
    """Of jobs with a result.

    Args:
        keys: what differs.
        order: the jobs as the page has them.
    """
    places = [place for place, job in enumerate(several.jobs) if job.result is not None]
    if len(places) < 2:
        return Effects()
    results = np.array([several.jobs[place].result for place in places], dtype=float)
    others = [key for key in keys if not key.is_seed]
    settings = _settings(others, places)
    groups = _grouped(settings, results)
    spread, freedom = pooled(list(groups.values()))
    seeded = freedom > 0 and len(others) < len(keys)
    number_of = {id(job): number for number, job in enumerate(order)}
    drawn = [number_of[id(several.jobs[place])] for place in places]
    told = _Results(places, drawn, results, settings if seeded else None, spread, freedom, several.minimize)
    varying = [key for key in (others if seeded else keys) if len(set(_known(key, places))) > 1]
    each = [_effect(told, key, _settings([other for other in keys if other is not key], places)) for key in varying]
    each.sort(key=lambda one: -1.0 if one.share is None else one.share, reverse=True)
    return Effects(each, seeded, spread, _over_seeds(told, others, groups) if seeded else [])


def _over_seeds(told: _Results, others: Sequence[Varied], groups: Mapping[Setting, list[float]]) -> list[SettingMean]:
    means = [(setting, mean_over_seeds([group], told.spread, told.freedom)) for setting, group in groups.items()]
    means.sort(key=lambda one: one[1].value, reverse=not told.minimize)
    return [
        ({key.label: shown(value) for key, value in zip(others, setting, strict=True)}, mean) for setting, mean in means
    ]


def _known(key: Varied, places: Sequence[int]) -> list[Value]:
    return [value for place in places if (value := key.values[place]) is not None]


def _settings(keys: Sequence[Varied], places: Sequence[int]) -> list[Setting]:
    return [tuple(key.values[place] for key in keys) for place in places]


def _grouped(settings: Sequence[Setting], results: Numbers) -> dict[Setting, list[float]]:
    groups: dict[Setting, list[float]] = defaultdict(list)
    for setting, result in zip(settings, results, strict=True):
        groups[setting].append(float(result))
    return groups


def _effect(told: _Results, key: Varied, rest: list[Setting]) -> Effect:
    """One key's; `rest` are the values of all other keys."""
    values = [key.values[place] for place in told.places]
    known = [index for index, value in enumerate(values) if value is not None]
    distinct = sorted(set(_known(key, told.places)), key=lambda value: (isinstance(value, str), value))
    numeric = key.is_numeric
    axis = {value: float(value) if numeric else float(place) for place, value in enumerate(distinct)}
    xs = np.array([axis[value] for value in _known(key, told.places)])
    log = numeric and xs.min() > 0 and xs.max() / xs.min() >= DECADE
    scatter = numeric and len(distinct) > MANY
    level_of = _ranges(xs) if scatter else np.array([distinct.index(value) for value in _known(key, told.places)])
    levels, names = [], []
    for level in np.unique(level_of)[:MOST_VALUES]:
        here = np.flatnonzero(level_of == level)
        members = [known[n] for n in here]
        low, high = (shown(values[known[here[place]]]) for place in (np.argmin(xs[here]), np.argmax(xs[here])))
        at = float(np.exp(np.log(xs[here]).mean())) if log else float(xs[here].mean())
        levels.append(Level(low if low == high else f"{low} to {high}", at, told.mean(members)))
        names.append(values[members[0]])
    if not scatter and len(levels) > 1:
        levels = _beside(told, levels, names, values, rest)
    points = [(float(x), float(told.results[i]), told.drawn[i]) for x, i in zip(xs, known, strict=True)]
    return Effect(key, levels, explained(level_of, told.results[known]), points, numeric, bool(log), scatter)


def _ranges(xs: Numbers) -> NDArray[np.int64]:
    """Ranges with about as many results each; equal values share one."""
    edges = np.unique(np.quantile(xs, np.linspace(0, 1, RANGES + 1)[1:-1]))
    return np.searchsorted(edges, xs, side="left")


def _beside(
    told: _Results, levels: list[Level], names: list[Any], values: list[Value | None], rest: list[Setting]
) -> list[Level]:
    """Adds the difference from the best level, over pairs of runs that have all other keys (the seed too) in common."""
    best = (min if told.minimize else max)(range(len(levels)), key=lambda place: levels[place].mean.value)
    by_level: dict[Any, dict[Setting, float]] = defaultdict(dict)
    for index, value in enumerate(values):
        by_level[value][rest[index]] = float(told.results[index])
    found = []
    for place, level in enumerate(levels):
        own, other = by_level[names[place]], by_level[names[best]]
        pairs = [own[setting] - other[setting] for setting in own if setting in other]
        found.append(replace(level, beside=mean_of(pairs) if pairs and place != best else None))
    return found
