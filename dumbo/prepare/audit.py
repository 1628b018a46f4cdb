"""What a data set is like once tokenised: the numbers that show a wrong mask, a lost end token, a doubled bos.

Printed by `preview`, written into run.json, and a gate: see `gates.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dumbo.interfaces import Source
from dumbo.prepare.gates import GATES
from dumbo.prepare.store import FIRST, Split


def audit_of(train: Split, held_out: Split | None) -> dict[str, Any]:
    """The counts over all rows that were read, training and held out together.

    Returns:
        rows, documents, tokens, trained_tokens, trained_share, source_tokens (before any cut), mean_tokens and longest
        (of those), one count for each of GATES, end_token_trained, rows_by_source, how many documents each split has,
        and first_rows: a count's name -> where the first rows stand that it counts.
    """
    stores = [train.store] + ([held_out.store] if held_out is not None and held_out.store is not train.store else [])
    counts: dict[str, int] = {}
    sources: dict[str, int] = {}
    first_rows: dict[str, list[str]] = {}
    for store in stores:
        for name, rows_named in store.meta["first_rows"].items():
            first_rows.setdefault(name, []).extend(str(Source(*row)) for row in rows_named)
        for name, number in store.meta["counts"].items():
            counts[name] = max(counts.get(name, 0), number) if name == "longest" else counts.get(name, 0) + number
        for file, number in store.meta["rows_by_file"].items():
            sources[file] = sources.get(file, 0) + number
    hashes = np.concatenate([np.asarray(store.hashes) for store in stores])
    rows = counts.get("rows", 0)
    audit: dict[str, Any] = {
        "rows": rows,
        "documents": counts.get("documents", 0),
        "tokens": counts.get("tokens", 0),
        "trained_tokens": counts.get("trained_tokens", 0),
        "trained_share": round(counts.get("trained_tokens", 0) / max(1, counts.get("tokens", 0)), 4),
        "source_tokens": counts.get("source_tokens", 0),
        "mean_tokens": round(counts.get("source_tokens", 0) / max(1, rows), 1),
        "longest": counts.get("longest", 0),
        "end_token_trained": counts.get("end_token_trained", 0),
    }
    derived = {
        "end_token_missing": rows - counts.get("end_token_trained", 0) - counts.get("dropped", 0),
        "duplicates": len(hashes) - len(np.unique(hashes)),
        "eval_rows_in_train": _shared_rows(train, held_out),
    }
    audit |= {name: int(derived.get(name, counts.get(name, 0))) for name in GATES}
    audit["train_documents"] = len(train)
    audit["eval_documents"] = len(held_out) if held_out is not None else 0
    audit["rows_by_source"] = sources
    audit["first_rows"] = {name: rows_named[:FIRST] for name, rows_named in first_rows.items()}
    return audit


def _shared_rows(train: Split, held_out: Split | None) -> int:
    """Held-out rows that stand in training too, token for token."""
    if held_out is None:
        return 0
    trained_on = _row_hashes(train)
    return int(np.isin(_row_hashes(held_out), trained_on).sum())


def _row_hashes(split: Split) -> Any:
    return np.asarray(split.store.hashes)[np.unique(split.store.origin[split.documents, 0])]


def lines_of(audit: Mapping[str, Any]) -> list[str]:
    """The audit as text, worrying counts marked with `!`."""
    rows = audit["rows"]
    lines = [
        f"rows                {rows:,}   (train {audit['train_documents']:,}, held out {audit['eval_documents']:,} documents)",
        f"tokens              {audit['tokens']:,}   mean {audit['mean_tokens']:,} a row, longest {audit['longest']:,}",
        f"trained             {audit['trained_tokens']:,}   {100 * audit['trained_share']:.1f}% of the tokens",
        f"end token trained   {audit['end_token_trained']:,} of {rows:,} rows",
    ]
    for name in GATES:
        if name in ("end_token_missing", "too_long") and not audit[name]:
            continue
        mark = "!" if audit[name] else " "
        lines.append(f"{mark} {name.replace('_', ' '):<33} {audit[name]:,}")
    lines += [f"  from {source}: {number:,} rows" for source, number in audit["rows_by_source"].items()]
    return lines
