"""What a launch plugin launches: one experiment, as the process that composed it knows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dumbo.launch.frozen import Frozen
    from dumbo.outputs.run_dir import RunDir


@dataclass(frozen=True)
class Job:
    """An experiment in a claimed folder.

    Attributes:
        run: its folder.
        here: runs it in this process (which may be one rank of several) and returns the metrics.
        prepare: prepares its data, without a model.
        freeze: what ranks in processes of their own are to run.
    """

    run: RunDir
    here: Callable[[], dict[str, Any]]
    prepare: Callable[[], None]
    freeze: Callable[[], Frozen]
