"""Single files that are whole or as they were, and earlier ones that are kept: verify.json, plan.json, reports, a sweep's own.

A run's own files are written by `RunDir.write`, which asks who may.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dumbo.errors import UserError


def writable_folder(asked: str | Path) -> Path:
    """`run_dir` as a folder that exists and can be written, absolute.

    Raises:
        UserError: it cannot be made or written.
    """
    folder = Path(asked).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"run_dir: the folder {folder} cannot be written ({error.strerror}).\n  Write run_dir=FOLDER for another one."
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"run_dir: the folder {folder} cannot be written.\n  Write run_dir=FOLDER for another one.")
    return folder.absolute()


@contextmanager
def made_beside(file: Path) -> Iterator[Path]:
    """Yields a path beside `file`; what the block writes there is put on the disk and becomes `file`: nobody ever sees half.

    Raises:
        OSError: it cannot be written; nothing is left behind, and an earlier one is as it was. So it is with what the
            block raises.
    """
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield beside
        settle(beside)
        beside.replace(file)
        settle(file.parent)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def settle(path: Path) -> None:
    """What a file or a folder holds is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(file: Path, text: str) -> None:
    """As `made_beside`, for a text."""
    with made_beside(file) as beside:
        beside.write_text(text, encoding="utf-8")


def keep_earlier(file: Path) -> Path | None:
    """A copy of `file` under the next free number (verify-1.json), before another one takes its place; None: there is none.

    A copy, so that `file` is there at every moment; made for this process alone, so that two of them never take one number.
    """
    if not file.exists():
        return None
    for number in itertools.count(1):
        copy = file.with_stem(f"{file.stem}-{number}")
        with suppress(FileExistsError), copy.open("xb") as stream:
            stream.write(file.read_bytes())
            return copy
    raise AssertionError("numbers do not end")
