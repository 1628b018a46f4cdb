"""What the report of several runs says of them: who is best, what varied, effects and their uncertainty, failures, cost."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from report_runs import made_up, metrics_rows
from sweep_runs import grid, made_up_sweep

from dumbo.errors import UserError
from dumbo.outputs.report.reading import Facts
from dumbo.outputs.report.several import differences
from dumbo.outputs.report.several.board import boards
from dumbo.outputs.report.several.cost import cost, cost_of
from dumbo.outputs.report.several.curves import LEAST, curves_of, overlaid
from dumbo.outputs.report.several.effects import Effects, effects
from dumbo.outputs.report.several.failures import failures
from dumbo.outputs.report.several.found import found
from dumbo.outputs.report.several.intervals import explained, mean_of, mean_over_seeds, pooled, t_975
from dumbo.outputs.report.several.jobs import Job, Several, less_is_better
from dumbo.outputs.report.several.leaderboard import leaderboard, write_tables
from dumbo.outputs.report.several.parallel import parallel
from dumbo.outputs.report.several.varied import varied


def of(folder: Path, metric: str | None = None) -> Several:
    several = found([str(folder)], metric, None)
    assert several is not None
    return several


def made_of(settings: list[dict[str, Any]], results: list[float], *, minimize: bool = True) -> Several:
    """A sweep in memory."""
    jobs = [Job(f"{n:03d}", None, "done", tuple(f"{k}={v}" for k, v in one.items()), config=one, result=result)
            for n, (one, result) in enumerate(zip(settings, results, strict=True))]  # fmt: skip
    return Several("made", Path(), jobs, "eval_loss", minimize, True)


def effects_of(several: Several) -> Effects:
    return effects(several, varied(several), several.ordered())


# ---- intervals: golden numbers ---------------------------------------------------------------------------------------


def test_quantiles_of_student() -> None:
    """Table values (NIST, https://www.itl.nist.gov/div898/handbook/eda/section3/eda3672.htm)."""
    for freedom, wanted in (
        (1, 12.706),
        (2, 4.303),
        (5, 2.571),
        (10, 2.228),
        (11, 2.201),
        (20, 2.086),
        (60, 2.000),
        (100, 1.984),
    ):
        assert t_975(freedom) == pytest.approx(wanted, abs=1e-3)


def test_a_mean_of_few_has_students_interval() -> None:
    values = [1.0, 1.2, 1.1, 1.5]
    mean = mean_of(values)
    error = statistics.stdev(values) / 2
    assert (mean.value, mean.count, mean.how) == (pytest.approx(1.2), 4, "t")
    assert mean.error == pytest.approx(error)
    assert mean.high == pytest.approx(1.2 + 3.182 * error, abs=1e-4)
    assert (mean_of([1.0]).error, mean_of([1.0]).low) == (None, None)


def test_a_mean_of_many_is_bootstrapped() -> None:
    values = [math.sin(n) for n in range(200)]
    mean = mean_of(values)
    error = statistics.stdev(values) / math.sqrt(200)
    assert mean.how == "bootstrap"
    assert mean.low == pytest.approx(
        mean.value - 1.96 * error, abs=0.15 * error
    )  # the bootstrap agrees with the normal here
    assert mean.high == pytest.approx(mean.value + 1.96 * error, abs=0.15 * error)
    assert mean_of(values) == mean, "the same each time"


def test_seeds_are_pooled() -> None:
    groups = [[1.0, 1.2], [2.0, 2.4, 2.2]]
    spread, freedom = pooled(groups)
    assert freedom == 3
    assert spread == pytest.approx(math.sqrt((0.02 + 0.08) / 3))
    mean = mean_over_seeds(groups, spread, freedom)
    assert mean.value == pytest.approx((1.1 + 2.2) / 2)  # settings count alike, however many seeds they have
    assert mean.error == pytest.approx(spread * math.sqrt(1 / 2 + 1 / 3) / 2)
    assert mean.count == 5
    assert pooled([[1.0], [2.0]]) == (0.0, 0)


def test_the_share_that_is_explained() -> None:
    import numpy as np

    labels, results = np.array([0, 0, 1, 1]), np.array([1.0, 1.0, 2.0, 2.0])
    assert explained(labels, results) == pytest.approx(1.0)
    noise = explained(np.array([0, 1, 0, 1]), np.array([1.0, 1.0, 2.0, 2.0]))
    assert noise == 0.0, "what groups explain by chance is taken off"
    assert explained(np.array([0, 1]), np.array([1.0, 2.0])) is None


# ---- what varied, and its effect -------------------------------------------------------------------------------------


def grid_of(**keys: list[Any]) -> list[dict[str, Any]]:
    names = [name.replace("__", ".") for name in keys]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*keys.values())]


def test_effects_where_seeds_repeat() -> None:
    settings = grid_of(trainer__lr=[0.001, 0.01], patch__lora__rank=[4, 8], trainer__seed=[1, 2])
    results = [1.0, 1.1, 0.8, 0.9, 2.0, 2.1, 1.8, 1.9]  # lr: +1, rank: -0.2, seed: +0.1
    told = effects_of(made_of(settings, results))
    assert told.over_seeds
    assert [one.varied.key for one in told.each] == [
        "trainer.lr",
        "patch.lora.rank",
    ]  # what explains most first; no seed
    lr = told.each[0]
    assert [level.label for level in lr.levels] == ["0.001", "0.01"]
    assert [level.mean.value for level in lr.levels] == pytest.approx([0.95, 1.95])
    assert [level.mean.count for level in lr.levels] == [4, 4]
    spread = math.sqrt(4 * 0.005 / 4)  # four pairs 0.1 apart
    assert told.spread == pytest.approx(spread)
    assert lr.levels[0].mean.error == pytest.approx(spread * math.sqrt(1 / 2 + 1 / 2) / 2)
    assert lr.levels[0].beside is None
    assert lr.levels[1].beside is not None
    assert (lr.levels[1].beside.value, lr.levels[1].beside.count) == (pytest.approx(1.0), 4)
    assert lr.levels[1].beside.error == pytest.approx(0.0, abs=1e-12)  # in pairs the rest cancels
    assert told.settings[0][0] == {"lr": "0.001", "rank": "8"}
    assert told.settings[0][1].value == pytest.approx(0.85)
    assert lr.log
    assert not lr.scatter


def test_effects_without_seeds_are_over_the_other_parameters() -> None:
    settings = grid_of(a__x=["p", "q"], a__y=[1, 2, 3])
    told = effects_of(made_of(settings, [1.0, 1.1, 1.2, 2.0, 2.1, 2.2], minimize=False))
    assert not told.over_seeds
    assert told.settings == []
    x = told.each[0]
    assert x.varied.key == "a.x"
    assert x.levels[0].mean.error == pytest.approx(0.1 / math.sqrt(3))
    assert x.levels[0].beside is not None
    assert x.levels[0].beside.value == pytest.approx(-1.0)  # more is better here: q is the best
    assert x.levels[1].beside is None


def test_many_values_are_told_in_ranges() -> None:
    settings = [{"trainer.lr": 10 ** (-5 + n / 25), "trainer.wd": 0.1 + n / 1000} for n in range(100)]
    told = effects_of(made_of(settings, [abs(n - 50) / 50 for n in range(100)]))
    lr = next(one for one in told.each if one.varied.key == "trainer.lr")
    assert (lr.scatter, lr.log, len(lr.points)) == (True, True, 100)
    assert [level.mean.count for level in lr.levels] == [20] * 5
    assert not next(one for one in told.each if one.varied.key == "trainer.wd").log


def test_only_what_differs_is_told_and_choices_as_one(tmp_path: Path) -> None:
    base = {
        "model": {"_target_": "m.Tiny", "size": 1},
        "trainer": {"lr": 1e-3, "seed": 1},
        "run_dir": "a",
        "chat": {"seed": 1},
    }
    lora = {"patch": {"lora": {"_target_": "p.LoRA", "rank": 8}}}
    configs = [
        {**base, "patch": {}},
        {**base, **lora, "run_dir": "b", "chat": {"seed": 2}},
        {**base, "patch": {"lora": {"_target_": "p.LoRA", "rank": 16}}, "model": {"_target_": "m.Other", "path": "x"}},
    ]
    for name, config in zip("abc", configs, strict=True):
        made_up(tmp_path / name, metrics_rows(3))
        (tmp_path / name / "config.yaml").write_text(json.dumps(config))
    several = found([str(tmp_path / name) for name in "abc"], None, None)
    assert several is not None
    assert {key.key: key.values for key in varied(several)} == {
        "model": ["Tiny", "Tiny", "Other"],
        "patch": ["none", "lora", "lora"],
        "patch.lora.rank": [None, 8, 16],
    }


def test_a_swept_choice_is_told_as_it_was_typed() -> None:
    several = made_of([{"patch": {}}, {"patch.lora._target_": "p.LoRA", "patch.lora.rank": 8}], [1.0, 2.0])
    jobs = [replace(job, words=(word,)) for job, word in zip(several.jobs, ("patch=[]", "patch=[lora]"), strict=True)]
    assert {key.key: key.values for key in varied(replace(several, jobs=jobs))} == {"patch": ["[]", "[lora]"]}


def test_numbers_are_numbers_however_they_are_written() -> None:
    several = made_of([{"t.lr": "1e-4"}, {"t.lr": 0.0001}, {"t.lr": "3e-4"}], [1.0, 1.0, 2.0])
    (lr,) = varied(several)
    assert lr.distinct == [0.0001, 0.0003]


def test_labels_are_as_short_as_they_can_be() -> None:
    several = made_of([{"a.seed": 1, "b.seed": 1, "c.lr": 1}, {"a.seed": 2, "b.seed": 2, "c.lr": 2}], [1.0, 2.0])
    assert [key.label for key in varied(several)] == ["a.seed", "b.seed", "lr"]


# ---- leaderboard -----------------------------------------------------------------------------------------------------


def test_the_leaderboard_is_a_table_for_polars(tmp_path: Path) -> None:
    several = of(made_up_sweep(tmp_path / "sweep", 50, steps=10))
    table = leaderboard(several, varied(several))
    assert table.height == 50
    done = table.filter(pl.col("state") == "done")
    assert done["rank"].to_list() == list(range(1, 49))
    assert done["result"].is_sorted()
    assert table["state"].to_list()[-2:] == ["failed", "failed"]
    assert table.filter(pl.col("state") == "failed")["rank"].null_count() == 2
    assert table["trainer.lr"].dtype == pl.Float64
    assert set(table.columns) > {
        "patch.lora.rank",
        "trainer.seed",
        "eval_loss",
        "gpu_hours",
        "tokens",
        "folder",
        "error",
    }
    parquet, csv = write_tables(table, tmp_path, "leaderboard")
    assert pl.read_parquet(parquet).equals(table)
    assert pl.read_csv(csv)["result"].to_list() == table["result"].to_list()


def test_a_spreadsheet_does_not_compute_what_a_file_says(tmp_path: Path) -> None:
    table = pl.DataFrame({"run": ["=HYPERLINK(1)", "fine", "@x"], "result": [-1.0, 2.0, 3.0]})
    _, csv = write_tables(table, tmp_path, "t")
    assert csv.read_text().splitlines() == ["run,result", "'=HYPERLINK(1),-1.0", "fine,2.0", "'@x,3.0"]


def test_a_table_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").mkdir()
    with pytest.raises(UserError, match=r"cannot be written to .*t\.parquet"):
        write_tables(pl.DataFrame({"a": [1]}), tmp_path, "t")
    assert not list(tmp_path.glob(".t*"))


def test_a_metric_of_ones_own(tmp_path: Path) -> None:
    sweep = made_up_sweep(tmp_path / "sweep", 3, steps=10)
    for number, folder in enumerate(sorted(sweep.glob("*/run.json"))):
        facts = json.loads(folder.read_text())
        facts["metrics"]["exact_match"] = number / 10
        folder.write_text(json.dumps(facts))
    several = of(sweep, "exact_match")
    assert not several.minimize
    assert several.ranked()[0].name.startswith("002")
    assert of(sweep).ranked()[0].name.startswith("001")
    assert less_is_better("acc", "minimize")
    assert not less_is_better("tasks.arc.acc_norm")


# ---- a sweep's folder ------------------------------------------------------------------------------------------------


def test_a_sweep_without_a_ledger_is_its_runs(tmp_path: Path) -> None:
    sweep = made_up_sweep(tmp_path / "sweep", 3, steps=10)
    for name in ("ledger.jsonl", "sweep.json"):
        (sweep / name).unlink()
    several = of(sweep)
    assert [key.key for key in varied(several)] == ["trainer.lr"]
    assert len(several.ranked()) == 3


def test_jobs_without_a_folder_and_a_torn_line(tmp_path: Path) -> None:
    sweep = made_up_sweep(tmp_path / "sweep", 3, steps=10)
    rows = [{"number": 3, "name": "003-never", "overrides": ["trainer.lr=1"], "state": "failed", "error": None, "exit_code": 2, "attempt": 1},
            {"number": 4, "name": "../outside", "overrides": ["trainer.lr=2"], "state": "waiting"}]  # fmt: skip
    made_up(tmp_path / "outside", metrics_rows(3), status="failed")
    (tmp_path / "outside.log").write_text("a secret")
    (sweep / "003-never.log").write_text("".join(f"line {n}\n" for n in range(100)))
    with (sweep / "ledger.jsonl").open("a") as ledger:
        ledger.write("".join(json.dumps(row) + "\n" for row in rows) + '{"number": 5, "na')
    several = of(sweep)
    never, outside = several.jobs[3:]
    assert never.error.splitlines()[-1] == "line 99"
    assert len(never.error.splitlines()) == 12
    assert (outside.path, outside.facts, outside.error) == (None, Facts(), "")
    assert [job.state for job in several.ordered()] == ["done"] * 3 + ["failed", "waiting"]


def test_failures_that_are_alike_stand_together(tmp_path: Path) -> None:
    several = of(made_up_sweep(tmp_path / "sweep", 80, steps=10))
    out_of_memory, interrupted = failures(several)
    assert (out_of_memory.state, len(out_of_memory.jobs), out_of_memory.codes) == ("failed", 4, "1")
    assert out_of_memory.first_line.startswith("torch.OutOfMemoryError")
    assert out_of_memory.names(2) == "016, 033 and 2 more"
    assert interrupted.state == "interrupted"


def test_cost(tmp_path: Path) -> None:
    several = of(made_up_sweep(tmp_path / "sweep", 3, steps=10))
    seconds = [job.row.number("seconds") for job in several.jobs]
    one = cost_of(several.jobs[0])
    assert one.gpu_hours == pytest.approx(seconds[0] / 3600)
    assert (one.cpu_hours, one.tokens) == (None, 10_000)
    told = {row.cells[0]: row.cells[1] for row in cost(several).tables[0].rows}
    assert told["tokens"] == "30,000"
    assert float(told["GPU hours"]) == pytest.approx(sum(seconds) / 3600, rel=1e-2)
    two_ranks = Job("r", Path(), "done", facts=Facts({"batch": {"ranks": 2}, "hardware": {"cpu": "x"}}), seconds=1800)
    assert (cost_of(two_ranks).cpu_hours, cost_of(two_ranks).gpu_hours) == (1.0, None)


# ---- curves and parallel coordinates ---------------------------------------------------------------------------------


def test_curves_are_read_as_they_are(tmp_path: Path) -> None:
    rows = metrics_rows(60, skipped=(7,))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "whole.jsonl").write_text(text)
    (tmp_path / "torn.jsonl").write_text(text + '{"step": 61, "lo')
    whole, torn = curves_of(tmp_path / "whole.jsonl"), curves_of(tmp_path / "torn.jsonl")
    assert whole.keys() == torn.keys() == {"loss", "eval_loss", "grad_norm", "lr", "tokens_per_s"}
    for name, (x, y) in whole.items():
        wanted = [(row["step"], row[name]) for row in rows if name in row]
        assert x.tolist() == torn[name][0].tolist() == [step for step, _ in wanted]
        assert [None if value != value else value for value in y.tolist()] == [value for _, value in wanted]
        assert [None if v != v else v for v in torn[name][1].tolist()] == [value for _, value in wanted]
    assert curves_of(tmp_path / "none.jsonl") == {}


def test_many_curves_share_steps_and_stay_small(tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text(
        "".join(json.dumps({"step": n, "loss": n / 10}) + "\n" for n in range(1, 2001))
    )
    (tmp_path / "short.jsonl").write_text("".join(json.dumps({"step": n, "loss": 1.0}) + "\n" for n in range(1, 11)))
    long, short = curves_of(tmp_path / "long.jsonl"), curves_of(tmp_path / "short.jsonl")
    (chart,) = overlaid([long] * 1000 + [short])
    assert chart.each == 13
    assert len(chart.steps) == 154 <= LEAST
    assert chart.steps[-1] <= 2000
    assert chart.lines[0][0] == pytest.approx(sum(range(1, 14)) / 130)  # the mean of its steps
    assert chart.steps[0] == 7
    assert chart.lines[1000][1:] == [None] * 153
    (few,) = overlaid([short, short])
    assert (few.each, few.steps) == (1, list(range(1, 11)))


def test_parallel_coordinates(tmp_path: Path) -> None:
    settings = grid_of(t__lr=[0.001, 0.01, 0.1], t__kind=["a", "b"])
    several = made_of([*settings, {"t.lr": 0.1, "t.kind": "c"}], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    told = parallel(several, varied(several), effects_of(several))
    assert told is not None
    lr, kind, result = told["axes"]
    assert (lr["label"], lr["log"], lr["ticks"]) == ("lr", True, [[0.0, "0.001"], [0.5, "0.01"], [1.0, "0.1"]])
    assert kind["ticks"] == [[0.0, "a"], [0.5, "b"], [1.0, "c"]]
    assert [result["ticks"][0][1], result["ticks"][-1][1]] == ["1", "7"]
    assert told["lines"][0] == [0, [0.0, 0.0, 0.0]]
    assert told["lines"][-1] == [6, [1.0, 1.0, 1.0]]
    assert parallel(made_of([{"a": 1}], [1.0]), [], Effects()) is None


# ---- runs beside one another -----------------------------------------------------------------------------------------


def test_differences_key_by_key(tmp_path: Path) -> None:
    for name, values in (("a", grid(3)[0]), ("b", grid(3)[2])):
        made_up(tmp_path / name, metrics_rows(3), data_fingerprint=name, versions={"torch": name, "numpy": "2"})
        config = json.loads((tmp_path / name / "config.yaml").read_text())
        config["trainer"]["lr"] = values["trainer.lr"]
        config["verify"]["mode"] = {"a": "off", "b": "quick"}[name]
        config["report"] = {"to": name}
        (tmp_path / name / "config.yaml").write_text(json.dumps(config))
    several = found([str(tmp_path / "b"), str(tmp_path / "a")], None, None)
    assert several is not None
    section = differences.config(several)
    keys, others = section.tables
    assert keys.head == ("key", "b", "a")  # as they were typed
    assert [row.cells for row in keys.rows] == [("trainer.lr", "0.001", "0.0001"), ("verify.mode", "quick", "off")]
    assert [row.cells for row in others.rows] == [("versions.torch", "b", "a"), ("data_fingerprint", "b", "a")]
    assert "do not share one set of data" in section.lead[0]
    numbers = differences.metrics(several).tables[0]
    assert numbers.rows[1].cells == ("eval loss", "0.273", "0.273")


def test_a_sweep_beside_a_run_is_its_runs(tmp_path: Path) -> None:
    made_up_sweep(tmp_path / "sweep", 3, steps=10)
    made_up(tmp_path / "run", metrics_rows(3))
    several = found([str(tmp_path / "sweep"), str(tmp_path / "run")], None, None)
    assert several is not None
    assert [job.name.split("-")[0] for job in several.jobs] == ["sweep/000", "sweep/001", "sweep/002", "run"]
    assert len(boards(several, varied(several), Effects())[0].rows) == 4
