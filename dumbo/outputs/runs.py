"""Runs on disk as others see them: run.json read, a folder's lock looked at, the last run found."""

from __future__ import annotations

import fcntl
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from dumbo.errors import UserError

RUNS = (
    "outputs/*/*/run.json",
    "outputs/*/run.json",
    "multirun_outputs/*/*/run.json",
    "multirun_outputs/*/*/*/run.json",
)
"""Where runs lie unless they were told otherwise, below the current folder."""


def read_facts(folder: Path) -> dict[str, Any]:
    """run.json of a folder; empty when there is none.

    Raises:
        UserError: it is no JSON object (dumbo replaces it whole: something else wrote it).
    """
    file = folder / "run.json"
    try:
        facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not what a run writes ({error}).\n  Take another folder.") from error
    if not isinstance(facts, dict):
        raise UserError(f"{file} is not what a run writes (no JSON object).\n  Take another folder.")
    return facts


def facts_if_whole(folder: Path) -> dict[str, Any]:
    """The same, empty for a folder whose run.json is broken or cannot be read: one of many that are looked through."""
    with suppress(UserError, OSError):
        return read_facts(folder)
    return {}


def is_claimed(folder: Path) -> bool:
    """Whether a live process holds a run's folder. Several may look at once, none of them taken for a run by another."""
    file = folder / ".lock"
    if not file.is_file():
        return False
    with file.open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def is_model_folder(folder: Path) -> bool:
    """Whether a folder is no run's but holds a model in Hugging Face's format."""
    return (folder / "config.json").is_file() and not (folder / "run.json").is_file()


def without_model(run: Path, purpose: str = "") -> UserError:
    """The error for a run that left no model, with the newest run here that has one.

    Args:
        purpose: what the model is wanted for (" to export").
    """
    status = facts_if_whole(run).get("status")
    others = [path.parent for pattern in RUNS for path in Path().glob(pattern) if (path.parent / "model").is_dir()]
    text = f"run: {run} has no model/{purpose} (its status is {status})."
    if not others:
        return UserError(f"{text}\n  Write run=FOLDER, of a run that has one, or of a model.")
    newest = max(others, key=lambda path: str(facts_if_whole(path).get("started", "")))
    return UserError(f"{text}\n  The newest here that has one: run={newest}")


def find_run(asked: str | None, key: str = "run") -> Path:
    """The folder of a run: a path, or `last`, the one that started last below outputs/ and multirun_outputs/.

    Raises:
        UserError: under the key that asked, that nothing was asked for, or there is no such run.
    """
    if asked is None:
        raise UserError("Which run? Write run=last, or run=FOLDER.")
    if asked != "last":
        folder = Path(asked).expanduser()
        if (folder / "adapter_config.json").is_file() and (folder.parent / "run.json").is_file():
            raise UserError(f"run: '{asked}' holds adapters alone.\n  Write the run's folder: run={folder.parent}")
        if not (folder / "run.json").is_file():
            raise UserError(f"run: '{asked}' is not a run's folder (there is no run.json in it).")
        return folder
    found = [path for pattern in RUNS for path in Path().glob(pattern)]
    if not found:
        raise UserError(f"{key}=last: there is no run below outputs/ or multirun_outputs/ here.\n  Write {key}=FOLDER.")
    return max(found, key=lambda path: str(facts_if_whole(path.parent).get("started", ""))).parent
