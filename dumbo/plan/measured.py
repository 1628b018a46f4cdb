"""The memory of the planned micro batch as measured, beside the prediction: `plan.measure`.

a GPU    the sizes around it too, by bisection: which is the largest that fits (the search of micro_batch_size=auto)
a CPU    that size alone, and only where the prediction fits: nothing but the machine's end would stop a larger one
FSDP2    never: one process cannot hold what several share
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dumbo.errors import UserError
from dumbo.plan.micro_batch import Choice, sizes

if TYPE_CHECKING:
    from dumbo.check import Plugins
    from dumbo.outputs.console import Console
    from dumbo.prepare.store import PreparedSplits


@dataclass(frozen=True)
class Measured:
    """What the planned micro batch took in a process of its own.

    Attributes:
        micro: the planned one.
        tried: size -> bytes at the peak; None: it did not fit.
        limit: bytes that it had to fit into; None: not known.
        largest: size that fits, of those that keep the global batch; None: none does. Where only one was tried, that one.
    """

    micro: int
    tried: Mapping[int, int | None]
    limit: int | None
    largest: int | None

    @property
    def peak(self) -> int | None:
        """Bytes; None: it does not fit."""
        return self.tried[self.micro]

    def facts(self) -> dict[str, Any]:
        """For plan.json. Bytes."""
        tried = {str(size): peak for size, peak in sorted(self.tried.items())}
        return {"peak": self.peak, "largest": self.largest, "tried": tried, "limit": self.limit}


def wanted(option: bool | str, sharded: bool) -> bool:
    """Whether the plan measures.

    Args:
        option: `plan.measure`: auto, true or false.
        sharded: the model is spread over ranks.

    Raises:
        UserError: it is asked for where it cannot be.
    """
    if option is True and sharded:
        raise UserError(
            "plan.measure=true: launch=fsdp spreads the model over ranks, and one process cannot hold what they share.\n"
            "  Write plan.measure=auto for the prediction alone"
        )
    return option is True or (option == "auto" and torch.cuda.is_available() and not sharded)


def of_choice(choice: Choice) -> Measured:
    """`trainer.micro_batch_size=auto` has measured it already."""
    return Measured(choice.micro, choice.tried, choice.limit, choice.micro)


def measured(
    plugins: Plugins, data: PreparedSplits, ranks: int, micro: int, free: int | None, console: Console
) -> Measured:
    """Measures.

    Args:
        micro: the planned one.
        free: bytes that a rank can have on a CPU; None: not known.

    Raises:
        RunFailed: the process failed for another reason than memory.
    """
    from dumbo.plan.measure import largest_measured

    on_gpu = torch.cuda.is_available()
    candidates = sizes(plugins.trainer.global_batch_size, ranks) if on_gpu else [micro]
    with console.status("measuring the memory, on the longest batch"):
        largest, tried, limit = largest_measured(
            plugins,
            data,
            candidates,
            ranks,
            limit=None if on_gpu else free,
            first=micro,
            instead="plan.measure=false",
        )
    return Measured(micro, tried, limit, largest)
