"""Sizes and hashes of a checkpoint's files: written with it, compared when it is read.

    {"optimizer.pt": {"bytes": 15000000000, "blake2b": "…", "part": 268435456}, …}

A file is hashed in parts, several at once: one core takes a second for each gigabyte, and a 1B's state has 17 of them. Its
hash is that of its parts' digests, one after another. Checkpoints of before have no "part", and the hash of the whole file.
BLAKE2: RFC 7693.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FILE = "manifest.json"
PART = 1 << 28
"""Bytes."""
MOST_AT_ONCE = 8
"""Threads, and half of the cores at most: training may go on beside. None besides this one where no file has a second part."""
AT_ONCE = 1 << 20
"""Bytes that are read at once; hashing so many leaves Python's lock to others."""
SHOWN = 32
"""Hexadecimal digits of a hash that are kept: 128 bits."""


def write(folder: Path) -> None:
    """Of all files there are."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sizes = [path.stat().st_size for path in paths]
    hashes = _hashes((path, size, PART) for path, size in zip(paths, sizes, strict=True))
    files = {
        str(path.relative_to(folder)): {"bytes": size, "blake2b": found, "part": PART}
        for path, size, found in zip(paths, sizes, hashes, strict=True)
    }
    (folder / FILE).write_text(json.dumps(files, indent=1))


def verify(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None when it is whole."""
    files = _read(folder)
    if files is None:
        return f"{folder.name} has no readable {FILE}"
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            return f"{folder.name} lacks {name}"
        if path.stat().st_size != facts["bytes"]:
            return f"{folder.name}: {name} has {path.stat().st_size:,} bytes, not {facts['bytes']:,}"
    hashes = _hashes((folder / name, facts["bytes"], facts.get("part")) for name, facts in files.items())
    for (name, facts), found in zip(files.items(), hashes, strict=True):
        if found != facts["blake2b"]:
            return f"{folder.name}: {name} is corrupt (its hash differs from the manifest's)"
    return None


def _read(folder: Path) -> dict[str, dict[str, Any]] | None:
    """File name -> bytes and hash; None when it is not there, or not what `write` wrote."""
    try:
        files = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(files, dict) or not files:
        return None
    good = all(
        isinstance(facts, dict)
        and facts.keys() >= {"bytes", "blake2b"}
        and isinstance(facts["bytes"], int)
        and isinstance(facts.get("part", 1), int)
        and facts.get("part", 1) > 0
        for facts in files.values()
    )
    return files if good else None


def _hashes(files: Iterable[tuple[Path, int, int | None]]) -> list[str]:
    """Of each file of so many bytes in such parts; None: of the whole."""
    parts = [
        (path, start, part) for path, size, part in files for start in range(0, max(size, 1), part or max(size, 1))
    ]
    digests: dict[Path, list[bytes]] = {}
    for (path, _, _), digest in zip(parts, _digests(parts), strict=True):
        digests.setdefault(path, []).append(digest)
    sizes = {path: part for path, _, part in parts}
    return [_together(sizes[path], found) for path, found in digests.items()]


def _digests(parts: list[tuple[Path, int, int | None]]) -> list[bytes]:
    """Several at once where there are cores and large files; a thread takes address space, of which there may be little."""
    at_once = min(MOST_AT_ONCE, (os.cpu_count() or 1) // 2, sum(start > 0 for _, start, _ in parts) + 1)
    if at_once > 1:
        try:
            with ThreadPoolExecutor(at_once) as threads:
                return list(threads.map(_digest, *zip(*parts, strict=True)))
        except RuntimeError:  # no thread is to be had (address space, processes of a container): slower, but whole
            pass
    return [_digest(*part) for part in parts]


def _together(part: int | None, digests: list[bytes]) -> str:
    whole = digests[0] if part is None else hashlib.blake2b(b"".join(digests)).digest()
    return whole.hex()[:SHOWN]


def _digest(path: Path, start: int, size: int | None) -> bytes:
    found = hashlib.blake2b()
    left = size
    with path.open("rb") as file:
        file.seek(start)
        while read := file.read(AT_ONCE if left is None else min(AT_ONCE, left)):
            found.update(read)
            left = None if left is None else left - len(read)
    return found.digest()
