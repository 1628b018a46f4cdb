"""A rank that ends right after an exchange ends well: gloo's threads still free what was sent, and need Python for it."""

from __future__ import annotations

import sys

from ranks import torchrun


def test_ranks_end_well_right_after_an_exchange() -> None:
    done = torchrun(4, __file__, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


def work() -> None:
    """A rank: many exchanges at once, and their threads get Python's lock only where this one waits."""
    import torch
    import torch.distributed as dist

    from dumbo.launch.world import join

    world = join(60.0)
    groups = [world.apart().group for _ in range(8)]
    found = [[torch.zeros(1) for _ in range(world.size)] for _ in groups]
    sys.setswitchinterval(10)
    sent = [dist.all_gather(f, torch.ones(1), g, async_op=True) for f, g in zip(found, groups, strict=True)]
    for exchange in sent:
        exchange.wait()


if __name__ == "__main__":
    work()
