"""The audit of the data: what the whole data set was like once tokenised."""

from __future__ import annotations

from collections.abc import Mapping

from dumbo.outputs.report.folder import Folder
from dumbo.outputs.report.reading import Facts, as_number
from dumbo.outputs.report.tables import MOST_ROWS, Row, Section, Table, rows, spoken
from dumbo.outputs.report.values import cut, figure, percent, plain

SIZES = {
    "rows": "rows", "documents": "documents", "train_documents": "documents trained on", "eval_documents": "documents held out",
    "tokens": "tokens", "mean_tokens": "tokens a row, mean", "longest": "longest row, in tokens", "trained_tokens": "trained tokens",
}  # fmt: skip
NOT_COUNTS = (*SIZES, "name", "trained_share", "end_token_trained", "rows_by_source", "source_tokens", "first_rows", "mode",
              "fail_on", "over")  # fmt: skip


def audit(run: Folder) -> Section:
    """Sizes, worrying counts, and the files they come from."""
    told = run.facts.at("data") or run.facts.at("audit")
    gated = run.facts.at("audit")
    if not told and not gated:
        return Section("data", "Data")
    told = Facts({**gated.values, **told.values})
    sizes = rows({"name": told.text("name"), **{label: told.number(key) for key, label in SIZES.items()}})
    if (share := told.number("trained_share")) is not None:
        sizes.append(Row(("share that is trained", percent(share))))
    if (ends := told.number("end_token_trained")) is not None:
        sizes.append(Row(("rows whose end token is trained", figure(ends))))
    if fingerprint := run.facts.text("data_fingerprint"):
        sizes.append(Row(("fingerprint", cut(fingerprint, 200))))
    tables = [Table("Size", sizes), _counts(told, gated)]
    if sources := told.at("rows_by_source"):
        few = list(sources.values.items())
        lines = [Row((cut(str(name), 300), figure(count))) for name, count in few[:MOST_ROWS]]
        more = f", the first {MOST_ROWS} of {len(few):,}" if len(few) > MOST_ROWS else ""
        tables.append(Table(f"Where the rows come from{more}", lines, ("source", "rows"), numbers=(1,)))
    return Section("data", "Data", tuple(tables))


def _counts(told: Facts, gated: Facts) -> Table:
    """What can be wrong with rows. Zero is good; what is over a threshold of the gate is bad."""
    over = {str(one.get("name")) for one in gated.list("over") if isinstance(one, Mapping)}
    first = told.at("first_rows")
    found = []
    for name, value in told.values.items():
        number = as_number(value)
        if name in NOT_COUNTS or number is None:
            continue
        state = "bad" if name in over else "warn" if number else "good"
        outcome = {"bad": "over the threshold", "warn": "look", "good": "none"}[state]
        where = plain(first.list(name)[:3]) if first.list(name) else ""
        found.append(Row((spoken(name), figure(number), outcome, where), state))
    if fine := [row.cells[0] for row in found if row.state == "good"]:
        found = [row for row in found if row.state != "good"]
        found.append(Row((", ".join(fine), "0", "none", ""), "good"))
    found.sort(key=lambda row: ("bad", "warn", "good").index(row.state))
    if not any(row.cells[3] for row in found):
        found = [Row(row.cells[:3], row.state) for row in found]
        return Table("Audit of all rows", found, ("what", "count", "outcome"), numbers=(1,))
    return Table("Audit of all rows", found, ("what", "count", "outcome", "first in"), numbers=(1,))
