"""A run's folder and moment as they are shown, and as they can be typed."""

from __future__ import annotations

import shlex
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from dumbo.override_text import value_text


def short(path: Path) -> str:
    """Relative to the current folder, where it lies below it."""
    with suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def typed(key: str, path: Path) -> str:
    """`resume=FOLDER` as it can be typed into a shell, whatever the folder's name is."""
    return shlex.quote(f"{key}={value_text(short(path))}")


def now() -> str:
    """In UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
