"""A rank may wait for another one for longer than an exchange may take: data that are prepared, files, a measurement."""

from __future__ import annotations

import sys
import time

from ranks import torchrun

EXCHANGE = 3.0
"""Seconds that an exchange may take here."""


def test_ranks_wait_for_as_long_as_they_are_told_to() -> None:
    done = torchrun(2, __file__, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("together") == 2, done.stdout


def work() -> None:
    """A rank: each wait is twice what an exchange may take."""
    from dumbo.launch.world import DISK, LONG, join

    world = join(EXCHANGE)
    for first in (world.main_first, world.one_first):
        with first():
            if world.main:
                time.sleep(2 * EXCHANGE)
    for patience in (LONG, DISK):
        if world.main:
            time.sleep(2 * EXCHANGE)
        world.barrier(patience)
    assert world.gather(world.rank) == [0, 1]
    sys.stdout.write("together\n")
    sys.stdout.flush()


if __name__ == "__main__":
    work()
