"""How much of the CPU's memory this process may still take: what the machine has, and what a container allows.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, and proc(5)
"""

from __future__ import annotations

from pathlib import Path

GROUPS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and use of this process's group, in the two versions of Linux's control groups."""


def available_memory(root: Path = Path("/")) -> float | None:
    """Bytes; None where it is not known (not Linux).

    Args:
        root: of the file system.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    for limit, used in GROUPS:
        try:
            most, now = (root / limit).read_text().strip(), (root / used).read_text().strip()
        except OSError:
            continue
        if most != "max":
            free = min(free, float(most) - float(now))
    return free
