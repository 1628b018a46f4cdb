"""How far a mean of a few results could be off: standard errors and 95% intervals.

Student's t for few values, the percentile bootstrap (Efron 1979, doi:10.1214/aos/1176344552) from eight on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_FROM = 8
RESAMPLES = 2000
T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""97.5% quantiles of Student's t with 1 to 10 degrees of freedom."""
Z_975 = 1.959964


@dataclass(frozen=True)
class Mean:
    """A mean of results.

    Attributes:
        count: of how many.
        error: its standard error; None where nothing repeats.
        low, high: ends of its 95% interval; None likewise.
        how: where the interval comes from, in words.
    """

    value: float
    count: int
    error: float | None = None
    low: float | None = None
    high: float | None = None
    how: str = ""


def t_975(freedom: int) -> float:
    """The 97.5% quantile of Student's t (Cornish-Fisher beyond the table: off by less than 1e-3)."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = Z_975
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2) + third


def mean_of(results: Sequence[float]) -> Mean:
    """The mean of results that differ in more than the seed: the interval is for others drawn like them."""
    values = np.asarray(results, dtype=float)
    count = len(values)
    mean = float(values.mean())
    if count < 2:
        return Mean(mean, count)
    error = float(values.std(ddof=1) / np.sqrt(count))
    if count < BOOTSTRAP_FROM:
        off = t_975(count - 1) * error
        return Mean(mean, count, error, mean - off, mean + off, "t")
    draws = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975))
    return Mean(mean, count, error, float(low), float(high), "bootstrap")


def mean_over_seeds(groups: Sequence[Sequence[float]], spread: float, freedom: int) -> Mean:
    """The mean of settings, each the mean of its seeds: the interval says what other seeds would change, for these settings.

    Args:
        groups: a setting's results each.
        spread: standard deviation between seeds, pooled over all settings.
        freedom: its degrees of freedom.
    """
    means = [float(np.mean(group)) for group in groups]
    mean = float(np.mean(means))
    error = spread * float(np.sqrt(sum(1 / len(group) for group in groups))) / len(groups)
    off = t_975(freedom) * error
    return Mean(mean, sum(len(group) for group in groups), error, mean - off, mean + off, "seeds")


def pooled(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation within groups, and its degrees of freedom (0: nothing repeats)."""
    freedom = sum(len(group) - 1 for group in groups)
    if freedom == 0:
        return 0.0, 0
    within = sum(float(np.sum((np.asarray(group) - np.mean(group)) ** 2)) for group in groups)
    return float(np.sqrt(within / freedom)), freedom


def explained(labels: NDArray[np.int64], results: NDArray[np.float64]) -> float | None:
    """The share of the results' variance that groups account for, less what as many groups would by chance (epsilon squared).

    Args:
        labels: (N,) the group of each result.
        results: (N,).
    """
    groups = [results[labels == label] for label in np.unique(labels)]
    total = float(np.sum((results - results.mean()) ** 2))
    if len(groups) < 2 or len(results) <= len(groups) or total == 0:
        return None
    within = sum(float(np.sum((group - group.mean()) ** 2)) for group in groups)
    noise = within / (len(results) - len(groups))
    return max(0.0, (total - within - (len(groups) - 1) * noise) / total)
