"""The folder that is exported to: it is there whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dumbo.cache import fsync_tree
from dumbo.errors import RunFailed, UserError


def require_free(asked: str) -> Path:
    """The folder as a path.

    Raises:
        UserError: it holds something, or is a file.
    """
    target = Path(asked).expanduser().absolute()
    if target.is_dir() and any(target.iterdir()):
        raise UserError(
            f"export.to: the folder '{asked}' is not empty.\n  Write another one, or take away what is in it."
        )
    if target.exists() and not target.is_dir():
        raise UserError(f"export.to: '{asked}' is a file. Write export.to=FOLDER.")
    return target


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """A folder beside `target`, on the same disk, that takes its name if the block ends well; else nothing is left.

    Raises:
        UserError: nothing can be written there.
        RunFailed: `target` has been filled meanwhile.
    """
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise UserError(f"export.to: nothing can be written to {target.parent} ({error.strerror}).") from error
    try:
        yield staging
        mask = os.umask(0)
        os.umask(mask)
        staging.chmod(0o777 & ~mask)  # mkdtemp lets nobody else in, nor does safetensors
        for file in staging.rglob("*"):
            file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)
        fsync_tree(staging)
        try:
            staging.rename(target)
        except OSError as error:
            raise RunFailed(
                f"export.to: {target} could not be put in place ({error.strerror}); nothing was written."
            ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):  # folders made for nothing; the first that holds something ends it
            for folder in made:
                folder.rmdir()
