"""The leaderboard: a Polars table with a row a run, best first; leaderboard.parquet and leaderboard.csv are it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from dumbo.errors import UserError
from dumbo.outputs.report.several.cost import cost_of
from dumbo.outputs.report.several.jobs import Job, Several
from dumbo.outputs.report.several.varied import Varied
from dumbo.outputs.whole_file import made_beside

METRICS = ("eval_loss", "train_loss", "exact_match", "tokens", "trained_tokens", "tokens_per_s", "peak_memory_gib")
"""Final numbers that are told wherever a run has them; others follow."""
FORMULA = r"^[=+\-@\t\r]"
"""How a cell begins that a spreadsheet computes."""


def leaderboard(several: Several, keys: Sequence[Varied]) -> pl.DataFrame:
    """Columns: rank (null without a result), run, state, result (named for the metric), the keys that differ, every final
    number, seconds, GPU and CPU hours, what went wrong, the folder.
    """
    place_of = {id(job): place for place, job in enumerate(several.jobs)}
    order = several.ordered()
    places = [place_of[id(job)] for job in order]
    ranks = [number if job.result is not None else None for number, job in enumerate(order, 1)]
    columns: dict[str, pl.Series] = {
        "rank": pl.Series(ranks, dtype=pl.Int64),
        "run": pl.Series([job.name for job in order], dtype=pl.String),
        "state": pl.Series([job.state for job in order], dtype=pl.String),
        "result": pl.Series([job.result for job in order], dtype=pl.Float64),
    }
    for key in keys:
        columns[key.key] = _series([key.values[place] for place in places])
    for name in _metric_names(order):
        own = name if name not in columns else f"metrics.{name}"
        columns[own] = pl.Series([_number(job, name) for job in order], dtype=pl.Float64)
    costs = [cost_of(job) for job in order]
    columns |= {
        "seconds": pl.Series([one.seconds for one in costs], dtype=pl.Float64),
        "gpu_hours": pl.Series([one.gpu_hours for one in costs], dtype=pl.Float64),
        "cpu_hours": pl.Series([one.cpu_hours for one in costs], dtype=pl.Float64),
        "attempts": pl.Series([one.attempts for one in costs], dtype=pl.Int64),
        "error": pl.Series([job.error or None for job in order], dtype=pl.String),
        "folder": pl.Series([str(job.path) if job.path else None for job in order], dtype=pl.String),
    }
    return pl.DataFrame(columns)


def _metric_names(jobs: Sequence[Job]) -> list[str]:
    there = {str(name): None for job in jobs for name in job.metrics.values if job.metrics.number(name) is not None}
    return [
        *(name for name in METRICS if name in there),
        *(name for name in there if name not in (*METRICS, "seconds")),
    ]


def _number(job: Job, name: str) -> float | None:
    value = job.metrics.number(name)
    return None if value is None else float(value)


def _series(values: list[Any]) -> pl.Series:
    """Numbers as numbers; as texts where one of them is a text."""
    if any(isinstance(value, str) for value in values):
        return pl.Series([None if value is None else str(value) for value in values], dtype=pl.String)
    whole = all(value is None or isinstance(value, int) for value in values)
    return pl.Series([None if value is None else value if whole else float(value) for value in values],
                     dtype=pl.Int64 if whole else pl.Float64)  # fmt: skip


def write_tables(table: pl.DataFrame, folder: Path, stem: str) -> list[Path]:
    """Parquet and CSV, whole or as they were.

    Raises:
        UserError: they cannot be written there.
    """
    targets = [folder / f"{stem}.parquet", folder / f"{stem}.csv"]
    for target in targets:
        try:
            with made_beside(target) as beside:
                if target.suffix == ".csv":
                    _for_spreadsheets(table).write_csv(beside)
                else:
                    table.write_parquet(beside)
        except OSError as error:
            raise UserError(
                f"The leaderboard cannot be written to {target} ({error.strerror or error}).\n"
                "  Write report.to=FILE for another place."
            ) from error
    return targets


def _for_spreadsheets(table: pl.DataFrame) -> pl.DataFrame:
    """Texts that a spreadsheet would take for a formula get an apostrophe before them (they come from files)."""
    texts = pl.col(pl.String)
    return table.with_columns(
        pl.when(texts.str.contains(FORMULA)).then(pl.lit("'") + texts).otherwise(texts).name.keep()
    )
