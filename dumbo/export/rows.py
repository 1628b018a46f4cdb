"""Rows that a run was trained on, to compare on: as ids from its prepared data, as messages from its data set.

What is no longer there is done without: held-out rows of samples.json stand in for the prepared data, and without the
data set nothing is rendered. `came_from` says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dumbo.errors import UserError
from dumbo.export.trained import Trained, node_of
from dumbo.interfaces import Row
from dumbo.outputs.runs import read_facts

if TYPE_CHECKING:
    from dumbo.prepare.store import Store

JINJA = "dumbo.formatter.jinja.Jinja"
TEXTS = 8
"""So many texts are put to the model, and rows rendered."""
LONGEST = 96
"""Tokens of each text that is put to the model; wrong weights are wrong at every place."""
LOOKED = 4
"""Batches of the data set that are looked through for the rows."""
MADE_UP = (
    "The quick brown fox jumps over the lazy dog.", "What is 17 + 25? It is 42.", "def add(a, b):\n    return a + b\n",
    "Once upon a time there was a small town by the sea.", "La capitale de la France est Paris.",
)  # fmt: skip


@dataclass(frozen=True)
class TrainedRow:
    """A row as it was trained.

    Attributes:
        ids: (T,) as prepared, cut where they were cut.
        source: file and line.
        reply: where the last answer begins in them; None where it is not known.
        row: what the data set says; None where it is gone.
    """

    ids: tuple[int, ...]
    source: str
    reply: int | None
    row: Row | None


@dataclass(frozen=True)
class Rows:
    """What is compared on.

    Attributes:
        prompts: token ids, for logits.
        trained: rows, for the template.
        came_from: where they are from, in words.
        formatter: the run's formatter; None where it cannot be built here.
        lacking: why it cannot.
    """

    prompts: list[list[int]]
    trained: list[TrainedRow]
    came_from: str
    formatter: Any = None
    lacking: str | None = None

    @property
    def whole(self) -> list[tuple[TrainedRow, Row]]:
        """Those whose messages are there."""
        return [(one, one.row) for one in self.trained if one.row is not None]


def rows_of(run: Path, trained: Trained, config_dirs: Sequence[Path]) -> Rows:
    """Finds them.

    Raises:
        UserError: the file of formatter.template is gone, which is the chat template.
    """
    data = read_facts(run).get("data", {})
    formatter, lacking = _built("formatter", trained, config_dirs)
    if formatter is None and node_of(trained.config, "formatter").get("_target_") == JINJA:
        raise UserError(f"run: its chat template is not here: {lacking}.\n  Restore it, or start where it lies.")
    stored, came_from = _prepared(data), "the prepared training data"
    if stored is None:
        stored, came_from = _samples(run), "the run's samples (its prepared data is no longer here)"
    if not stored:
        prompts = [list(trained.tokenizer(text)["input_ids"])[:LONGEST] for text in MADE_UP]
        return Rows(
            prompts, [], "made-up texts (neither the run's prepared data nor samples are here)", formatter, lacking
        )
    by_source, why = _by_source(trained, data, config_dirs)
    if why is not None:
        came_from += f"; its data set is not here ({why})"
    found = [TrainedRow(one.ids, one.source, one.reply, by_source.get(one.source)) for one in stored]
    first = {one.source: one for one in reversed(found)}  # of a row that was split, its first piece
    known = [one for one in found if one.row is not None and first[one.source] is one] or found
    return Rows([list(one.ids[:LONGEST]) for one in _spread(found)], known[:TEXTS], came_from, formatter, lacking)


def _spread(rows: Sequence[TrainedRow]) -> list[TrainedRow]:
    return [rows[number] for number in np.unique(np.linspace(0, len(rows) - 1, TEXTS).round().astype(int)).tolist()]


def _prepared(data: dict[str, Any]) -> list[TrainedRow] | None:
    """The first documents of the run's store; None when it is gone."""
    from dumbo.prepare.store import Store

    folder = Path(str(data.get("stored_in", "")))
    if not (folder / "meta.json").is_file():
        return None
    store = Store(folder)
    return [_document(store, number) for number in range(min(len(store), 50 * TEXTS))]


def _document(store: Store, number: int) -> TrainedRow:
    reply = store.reply(number)
    ids = tuple(store.ids(number).tolist())
    return TrainedRow(ids, str(store.source(number)), reply[0] if reply else None, None)


def _samples(run: Path) -> list[TrainedRow]:
    """The held-out rows that samples.md shows."""
    file = run / "samples.json"
    if not file.is_file():
        return []
    return [
        TrainedRow((*one["prompt_ids"], *one["reference_ids"]), one["source"], len(one["prompt_ids"]), None)
        for one in json.loads(file.read_text(encoding="utf-8"))
    ]


def _by_source(
    trained: Trained, data: dict[str, Any], config_dirs: Sequence[Path]
) -> tuple[dict[str, Row], str | None]:
    """File and line -> row, of the first rows; or why there are none."""
    dataset, why = _built("dataset", trained, config_dirs)
    if dataset is None:
        return {}, why
    try:
        if problems := [str(problem) for problem in getattr(dataset, "problems", list)()]:
            return {}, _first_line(problems[0])
        splits = dataset.load()
        if data.get("rows_fingerprint") not in (None, splits.fingerprint):
            return {}, "it has changed since"
        batches = [batches for batches in (splits.train, splits.eval) if batches is not None]
        rows = [row for some in batches for batch in islice(some, LOOKED) for row in batch if isinstance(row, Row)]
    except (UserError, OSError) as error:
        return {}, _first_line(str(error))
    return {str(row.source): row for row in rows}, None


def _built(group: str, trained: Trained, config_dirs: Sequence[Path]) -> tuple[Any, str | None]:
    """A plugin of the run's config; or why it cannot be built here."""
    from omegaconf.errors import OmegaConfBaseException

    from dumbo.check import build_one

    try:
        return build_one(group, node_of(trained.config, group), config_dirs), None
    except (UserError, OmegaConfBaseException) as error:
        return None, _first_line(str(error))


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(".")[:160]
