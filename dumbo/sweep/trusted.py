"""A sweep's folder may come from somebody else: nothing in its ledger writes outside of the folder, or brings code along.

What stands in sweep.json is looked at in typed.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from dumbo.command import Command
from dumbo.errors import UserError
from dumbo.hydra_node import key_of
from dumbo.outputs.places import short
from dumbo.repeat import require_typed
from dumbo.sweep.ledger import FILE, Row

ANOTHER = "Write another sweep_dir=FOLDER."


def require_inside(folder: Path, rows: Iterable[Row]) -> None:
    """The names of jobs become folders and logs in the sweep's, their words overrides.

    Raises:
        UserError: a name leads elsewhere; a word is a flag, a file, or no text.
    """
    for row in rows:
        if not isinstance(row.name, str) or row.name in ("", ".", "..") or {"/", "\0", "\n"} & set(row.name):
            raise UserError(f"{_job(folder, row)} is called {row.name!r}, which leads elsewhere.\n  {ANOTHER}")
        words = row.overrides if isinstance(row.overrides, list) else [row.overrides]
        if stray := [word for word in words if not _is_override(word)]:
            raise UserError(f"{_job(folder, row)} has the word {stray[0]!r}, which is no override.\n  {ANOTHER}")


def require_no_code(folder: Path, rows: Iterable[Row], command: Command, swept: Collection[str]) -> None:
    """The words of jobs that nobody typed now become words of a command line, which may say what no file may.

    Args:
        command: what was typed, and what sweep.json adds.
        swept: the keys that are swept now: whoever types one means its values.

    Raises:
        UserError: one would run code.
    """
    for row in rows:
        typed = {key for key in map(key_of, row.overrides) if key in swept}
        require_typed(row.overrides, typed, command, f"sweep_dir: {_job(folder, row)}")


def _is_override(word: object) -> bool:
    return isinstance(word, str) and not word.startswith("-") and ("=" in word or word.startswith("~"))


def _job(folder: Path, row: Row) -> str:
    return f"{short(folder / FILE)}: job {row.number}"
