"""Where dumbo keeps what it can make again: prepared data, converted models. `DUMBO_CACHE` moves it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dumbo.errors import UserError


def cache_folder(kind: str) -> Path:
    """The folder for one kind of thing (`prepared`, `gguf`), made if need be."""
    root = os.environ.get("DUMBO_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dumbo"
    folder = Path(root).expanduser() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The cache folder {folder} cannot be made ({error.strerror}).\n  Set DUMBO_CACHE to a folder that can be written."
        ) from error
    return folder


@contextmanager
def made_whole(target: Path) -> Iterator[Path]:
    """Yields a staging folder that becomes `target` only if the block ends well: complete or absent.

    Another process may make the same thing at the same time; the first to finish wins, the other's is dropped.
    """
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield staging
        fsync_tree(staging)
        try:
            staging.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Others that would make the same thing wait here, and find it made; on a disk that knows no locks they make it too."""
    with (cache_folder("locks") / target.name).open("a") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fsync_tree(folder: Path) -> None:
    """Makes sure that a folder's files and names are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def content_hash(path: Path) -> str:
    """sha256 of a file, remembered by path, size, time of change and inode, so that a large file is read once."""
    stat = path.stat()
    identity = hashlib.sha256(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}".encode()).hexdigest()
    note = cache_folder("hashes") / identity[:32]
    if note.is_file() and len(remembered := note.read_text()) == 64:
        return remembered
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if stat.st_size > 1 << 20:
        note.write_text(digest.hexdigest())
    return digest.hexdigest()


def key_of(parts: dict[str, object]) -> str:
    """A short name for a set of parts: equal parts, equal name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]
