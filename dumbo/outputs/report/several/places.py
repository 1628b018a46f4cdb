"""Which folders are a sweep's, and where its runs lie."""

from __future__ import annotations

from pathlib import Path


def is_sweep(folder: Path) -> bool:
    """Whether a folder is no run's but a sweep's: it has a ledger, or folders of runs."""
    if (folder / "run.json").is_file():
        return False
    return (folder / "ledger.jsonl").is_file() or next(iter(runs_within(folder)), None) is not None


def runs_within(folder: Path) -> list[Path]:
    """The folders of runs in a sweep's, or in one that holds sweeps, by name."""
    return sorted({file.parent for pattern in ("*/run.json", "*/*/run.json") for file in folder.glob(pattern)})
