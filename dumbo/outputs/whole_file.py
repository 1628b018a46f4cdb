"""Single files that are whole or as they were, and earlier ones that are kept: verify.json, plan.json, evaluation.json.

A run's own files are written by `RunDir.write`, which asks who may.
"""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
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


def write_whole(file: Path, text: str) -> None:
    """Written beside itself, on the disk, and then renamed: nobody ever sees half of it.

    Raises:
        OSError: it cannot be written; nothing is left behind, and an earlier one is as it was.
    """
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


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
