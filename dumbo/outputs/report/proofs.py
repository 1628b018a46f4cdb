"""What was proven: at the start of the run, and by `dumbo verify` in its folder."""

from __future__ import annotations

from typing import Any

from dumbo.outputs.report.folder import Folder
from dumbo.outputs.report.reading import Facts
from dumbo.outputs.report.tables import MOST_ROWS, Row, Section, Table
from dumbo.outputs.report.values import NOTHING, duration, figure, plain


def proofs(run: Folder) -> Section:
    """Both tables, and a sentence where nothing was proven."""
    quick = [plain(text) for text in run.facts.list("proofs")[:MOST_ROWS]]
    seconds = run.facts.number("proof_seconds")
    took = f", in {duration(seconds)}" if seconds is not None else ""
    tables = [Table(f"On this model and this data, before the first step{took}", [_quick(text) for text in quick])]
    lead: list[str] = []
    if not quick and run.config.get("verify", "mode") == "off":
        lead.append("No proof was asked for (verify.mode=off).")
    elif not quick:
        lead.append("The run ended before anything was proven.")
    if run.verification:
        tables.append(_verified(run.verification))
        if run.verification.get("config_hash") not in (None, run.facts.get("config_hash")):
            lead.append("verify.json was written for another config than this run's.")
    return Section("proofs", "Proofs", tuple(tables), tuple(lead))


def _quick(text: str) -> Row:
    return Row((text, "not proven" if "not proven" in text else "holds"), "" if "not proven" in text else "good")


def _verified(told: Facts) -> Table:
    """verify.json: compared, measured, allowed, and where the tolerance comes from."""
    passed = told.get("passed")
    outcome = {True: "all hold", False: "not all hold"}.get(passed, "") if isinstance(passed, bool) else ""
    if ended := told.text("ended"):
        outcome = f"stopped ({ended})"
    caption = f"dumbo verify: {outcome}" if outcome else "dumbo verify"
    found = [_proof(Facts(one)) for one in told.list("proofs")[:MOST_ROWS] if isinstance(one, dict)]
    return Table(
        caption, found, ("proof", "outcome", "compared", "measured", "allowed", "tolerance from"), numbers=(3, 4)
    )


def _proof(one: Facts) -> Row:
    passed = one.get("passed")
    state, outcome = {True: ("good", "holds"), False: ("bad", "fails")}.get(passed if isinstance(passed, bool) else None, ("", "left out"))  # type: ignore[arg-type]  # fmt: skip
    if one.text("error") is not None:
        outcome = "ended by an error"
    elif passed is None and one.get("difference") is not None:
        outcome = "reported"
    said = [text for text in (one.text("compared"), one.text("detail")) if text]
    return Row((plain(one.get("name")), outcome, plain("; ".join(said)), _number(one.get("difference")),
                _number(one.get("tolerance")), plain(one.get("source"))), state)  # fmt: skip


def _number(value: Any) -> str:
    return value if isinstance(value, str) else figure(value) if value is not None else NOTHING
