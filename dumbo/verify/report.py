"""verify.json: every proof with its numbers, beside what it was proven on."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError
from dumbo.outputs.places import now

if TYPE_CHECKING:
    from dumbo.verify.proof import Proof
    from dumbo.verify.subject import Subject

FILE = "verify.json"


@contextmanager
def report_folder(run_dir: str | None, choices: Mapping[str, Any]) -> Iterator[Path]:
    """Where verify.json goes: `run_dir`, else a folder below outputs/ of its own. Made before anything is proven, and
    taken away again where nothing was.

    Raises:
        UserError: it cannot be made or written.
    """
    if run_dir is not None:
        folder = Path(run_dir).expanduser()
    else:
        name = f"{datetime.now():%H-%M-%S}-verify-{choices.get('model', 'model')}-{secrets.token_hex(2)}"
        folder = Path("outputs") / datetime.now().strftime("%Y-%m-%d") / name
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"run_dir: the folder {folder} cannot be written ({error.strerror}).\n  Write run_dir=FOLDER for another one."
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"run_dir: the folder {folder} cannot be written.\n  Write run_dir=FOLDER for another one.")
    try:
        yield folder.absolute()
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()


def write_report(folder: Path, subject: Subject, found: Sequence[Proof], seconds: float) -> Path:
    """Writes verify.json, whole or not at all, and returns its path."""
    from dumbo.outputs.config_hash import config_hash
    from dumbo.outputs.secrets import masked
    from dumbo.outputs.surroundings import hardware, versions

    data = subject.data
    facts = {
        "passed": not any(proof.passed is False for proof in found),
        "proofs": [{key: _finite(value) for key, value in asdict(proof).items()} for proof in found],
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
    }
    file = folder / FILE
    aside = folder / f".{FILE}.{os.getpid()}"
    aside.write_text(json.dumps(facts, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    aside.replace(file)
    return file


def _finite(value: Any) -> Any:
    """JSON has no form for what is not a number: said in words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
