"""How much of the CPU's memory this process may still take, and giving back what was freed.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, proc(5), mallopt(3)
"""

from __future__ import annotations

import ctypes
import sys
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


M_MMAP_THRESHOLD = -3
OF_ITS_OWN = 128 << 10
"""Bytes from which a block of memory is one of its own to glibc at first, given back to the system when it is freed."""


def give_back_what_is_freed() -> bool:
    """Keeps glibc from raising that size (up to 32 MiB, by itself, as large blocks are freed).

    Where layers are computed again in the backward pass it would keep about as much as all of their activations: what is
    checkpointed would save nothing (measured, docs/plan.md). Costs about a third more time a step.

    Returns:
        whether there is such a size to set (glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    own = ctypes.CDLL(None)
    return (
        hasattr(own, "mallopt")
        and hasattr(own, "gnu_get_libc_version")
        and bool(own.mallopt(M_MMAP_THRESHOLD, OF_ITS_OWN))
    )
