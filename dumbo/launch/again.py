"""A run whose memory was full is started again, from its last checkpoint, with a smaller micro batch.

For what a process cannot mend in its place (`trainer/shrinking.py`): several ranks, or the optimizer's step. Where CUDA
graphs held memory that nobody asked them to, it is started again without them first, in the size that it has.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from dumbo.errors import MemoryFull
from dumbo.outputs.halvings import give_up_graphs, halve, happened
from dumbo.trainer.signals import interruptible

if TYPE_CHECKING:
    from dumbo.outputs.run_dir import RunDir

T = TypeVar("T")


def with_less_memory(run: RunDir, attempt: Callable[[], T]) -> T:
    """What `attempt` returns, however often it takes.

    Args:
        run: claimed by this process.
        attempt: trains, from the newest checkpoint where `run.resuming`.

    Raises:
        RunFailed: the micro batch cannot be smaller, or was halved often enough; whatever else `attempt` raises.
    """
    while True:
        try:
            return attempt()
        except MemoryFull as error:
            run.console.log(traceback.format_exc())
            full = MemoryFull(
                error.text, error.step, error.batch, error.asked, error.graphs
            )  # without the frames it came through
        # Outside of the except block: nothing holds the tensors of the attempt that failed.
        with interruptible():
            if full.graphs:
                give_up_graphs(run, full)
            how = "without CUDA graphs" if full.graphs else str(halve(run, full))
            saved = any((run.path / "checkpoints").glob("step-*"))
            place = "the last checkpoint" if saved else "the start"
            run.console.row("memory", f"{happened(full)}:\nonce more from {place}, {how}")
            run.start_again()
            _give_back()


def _give_back() -> None:
    """Memory of this process, where it was the one that trained."""
    if "torch" in sys.modules:
        from dumbo.trainer.memory import give_back

        give_back()
