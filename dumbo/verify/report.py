"""verify.json: every proof with its numbers, beside what it was proven on. verify.log: tracebacks, where an error ended one."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.outputs.places import now
from dumbo.outputs.whole_file import keep_earlier, writable_folder, write_whole

if TYPE_CHECKING:
    from dumbo.verify.proof import Proof
    from dumbo.verify.subject import Subject

FILE = "verify.json"
LOG = "verify.log"


@contextmanager
def report_folder(run_dir: str | None, choices: Mapping[str, Any]) -> Iterator[Path]:
    """Where verify.json goes: `run_dir`, else a folder below outputs/ of its own. Made before anything is proven, and
    taken away again where nothing was.

    Raises:
        UserError: it cannot be made or written.
    """
    if run_dir is not None:
        asked = Path(run_dir).expanduser()
    else:
        name = f"{datetime.now():%H-%M-%S}-verify-{choices.get('model', 'model')}-{secrets.token_hex(2)}"
        asked = Path("outputs") / datetime.now().strftime("%Y-%m-%d") / name
    made = not asked.exists()
    folder = writable_folder(asked)
    try:
        yield folder
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()


def write_report(
    folder: Path, subject: Subject, found: Sequence[Proof], seconds: float, ended: str | None = None
) -> tuple[Path, Path | None]:
    """Writes verify.json, whole or not at all; an earlier one stays, as verify-1.json and so on.

    Args:
        ended: what kept the others from running (Ctrl-C, a signal); None: all have run.

    Returns:
        where it is, and where the earlier one is now.
    """
    from dumbo.outputs.config_hash import config_hash
    from dumbo.outputs.secrets import masked
    from dumbo.outputs.surroundings import hardware, versions

    data = subject.data
    failed = any(proof.passed is False for proof in found)
    facts = {
        "passed": False if failed else None if ended is not None else True,  # null: not all of it is known
        "ended": ended,
        "proofs": [{"state": proof.state, **{key: _finite(value) for key, value in asdict(proof).items()}} for proof in found],
        "seconds": round(seconds, 1),
        "model": str(getattr(subject.plugins.model, "name", type(subject.plugins.model).__name__)),
        "patches": {**dict.fromkeys(subject.patches, "applied"), **subject.run.facts.get("patches", {})},
        "data": {
            "name": data.name,
            "rows": data.train.rows,
            "documents": len(data.train),
            "fingerprint": data.fingerprint,
        },
        "config_hash": config_hash(masked(subject.composed.cfg)) if subject.composed is not None else None,
        "versions": versions(),
        "hardware": hardware(),
        "when": now(),
    }  # fmt: skip
    earlier = keep_earlier(folder / FILE)
    write_whole(folder / FILE, json.dumps(facts, ensure_ascii=False, default=str) + "\n")
    return folder / FILE, earlier


def _finite(value: Any) -> Any:
    """JSON has no form for what is not a number: said in words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
