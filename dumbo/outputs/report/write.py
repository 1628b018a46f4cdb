"""Writes report.html: at the end of a run, and for `dumbo report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dumbo.errors import UserError
from dumbo.outputs.whole_file import write_whole

if TYPE_CHECKING:
    from dumbo.outputs.report.folder import Folder
    from dumbo.outputs.run_dir import RunDir

FILE = "report.html"


def write_page(run: Folder, target: Path) -> None:
    """The page of a run, whole or as it was.

    Raises:
        UserError: it cannot be written there.
    """
    from dumbo.outputs.report.page import page

    write_text(page(run), target)


def write_text(text: str, target: Path) -> None:
    """Any page, whole or as it was.

    Raises:
        UserError: it cannot be written there.
    """
    try:
        write_whole(target, text)
    except OSError as error:
        raise UserError(
            f"The report cannot be written to {target} ({error.strerror}).\n  Write report.to=FILE for another place."
        ) from error


def report_on(run: RunDir) -> bool:
    """At a run's end, however it ended. Returns whether there is a page: a full disk must not change how a run ends."""
    if not run.writes:
        return False
    from dumbo.outputs.report.folder import read  # numpy: not before a run has said its first line

    try:
        write_page(read(run.path), run.path / FILE)
    except UserError as error:
        run.console.log(str(error))
        return False
    return True
