"""metrics.jsonl -> curves: what is thinned keeps its spikes, and what is broken is read up to there."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from report_runs import made_up, metrics_rows

from dumbo.outputs.report.charts import drawn
from dumbo.outputs.report.curves import MOST_POINTS, measured, points, smoothed, thinned


def test_no_spike_is_lost_among_a_hundred_thousand_steps() -> None:
    noise = np.random.default_rng(0)
    x, y = np.arange(1.0, 100_001), noise.normal(1.0, 0.1, 100_000)
    spikes = noise.choice(100_000, 40, replace=False)
    y[spikes[:20]] += 5 + noise.random(20)
    y[spikes[20:]] -= 5 + noise.random(20)
    kept_x, kept_y = thinned(x, y)
    assert len(kept_x) <= MOST_POINTS
    assert set(x[spikes]) <= set(kept_x)
    assert (np.diff(kept_x) > 0).all()
    assert kept_x[0] == 1
    assert kept_x[-1] == 100_000
    assert all(y[int(step) - 1] == value for step, value in zip(kept_x, kept_y, strict=True))
    for start in range(0, 100_000, 1000):  # the envelope, found again: the extremes of every thousand steps
        part = y[start : start + 1000]
        among = kept_y[(kept_x > start) & (kept_x <= start + 1000)]
        assert part.max() in among
        assert part.min() in among


def test_few_points_are_left_alone() -> None:
    x = np.arange(2000.0)
    assert thinned(x, x)[0] is x


def test_a_gap_stays_a_gap() -> None:
    x, y = np.arange(10_000.0), np.ones(10_000)
    y[4000:6000] = np.nan
    told = points(x, y)
    gaps = [step for step, value in zip(told["x"], told["y"], strict=True) if value is None]
    assert gaps
    assert min(gaps) >= 4000
    assert max(gaps) < 6000
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("over", [10, 25])
def test_means_do_not_lag_behind(over: int) -> None:
    y = np.random.default_rng(1).normal(size=90)
    y[30] = np.nan
    wanted = []
    for place in range(90):
        reach = min(over // 2, place, 89 - place)
        wanted.append(np.nanmean(y[place - reach : place + reach + 1]))
    assert smoothed(y, over) == pytest.approx(np.array(wanted), abs=1e-12)


def test_a_cut_line_ends_the_reading(tmp_path: Path) -> None:
    made_up(tmp_path, metrics_rows(20))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "los')
    found = measured(tmp_path / "metrics.jsonl")
    assert found.last_step() == 20
    assert found.faults == ["metrics.jsonl is read up to line 21, which is cut off or no JSON"]


def test_rows_of_another_kind_are_passed_over(tmp_path: Path) -> None:
    lines = [
        '{"step": 1, "loss": 3.0}', "[1, 2]", '"text"', "", '{"loss": 9}', '{"step": "x", "loss": 9}', '{"step": -1, "loss": 9}',
        '{"step": 1e300, "loss": 9}', '{"step": 2, "loss": "low"}', '{"step": 3, "loss": NaN}', '{"step": 5, "loss": 1.0}',
        '{"step": 4, "loss": 2.0}', '{"step": 5, "loss": 1.5, "spike": 7, "skipped_steps": "many"}', '{"step": 6, "loss": 1' + "0" * 40 + "}",
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    found = measured(tmp_path / "metrics.jsonl")
    x, y = found.columns["loss"]
    assert x.tolist() == [1, 2, 3, 4, 5, 6]
    assert [None if math.isnan(value) else value for value in y] == [3.0, None, None, 2.0, 1.5, None]
    assert not found.marks
    assert not found.faults


def test_a_number_with_too_many_digits_ends_the_reading(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1}\n{"step": 2, "loss": 1' + "0" * 5000 + "}\n" + "[" * 100_000
    )
    assert measured(tmp_path / "metrics.jsonl").last_step() == 1


def test_spikes_and_skipped_steps_are_marked(tmp_path: Path) -> None:
    found = measured(made_up(tmp_path) / "metrics.jsonl")
    assert [(step, kind) for step, kind, _ in found.marks] == [(120, "spike"), (150, "skipped")]
    assert (found.spikes, found.skipped) == (1, 1)


def test_a_chart_says_in_words_what_it_draws(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": loss} for step, loss in enumerate([4.0, 9.0, 1.0, 2.0], 1)]
    charts = drawn(measured(made_up(tmp_path, [*rows, {"step": 4, "eval_loss": 2.5}]) / "metrics.jsonl"))
    assert [one.chart.name for one in charts] == ["loss"]
    assert charts[0].told == "training 4 → 2, lowest 1 at step 3, highest 9 at step 2; held out 2.5 throughout"
    assert charts[0].log


def test_no_logarithm_of_nothing(tmp_path: Path) -> None:
    charts = drawn(measured(made_up(tmp_path, [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.0}]) / "metrics.jsonl"))
    assert not charts[0].log


def test_without_metrics_there_is_no_chart(tmp_path: Path) -> None:
    assert drawn(measured(tmp_path / "metrics.jsonl")) == []
