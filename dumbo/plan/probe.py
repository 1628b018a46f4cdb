"""`python -m dumbo.plan.probe`: trains on the longest batch with one micro batch size after another. Started by `measure.py`.

The model is loaded and patched as for training; each size makes two whole optimizer steps (the first makes the
optimizer's state) and measures the held-out loss once. Where the memory runs out this process ends: what torch has
taken in vain is not worth cleaning up.
"""

from __future__ import annotations

import gc
import io
import json
import pickle
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dumbo.batch import Batch
from dumbo.launch.rank import die_with
from dumbo.outputs.console import Console
from dumbo.outputs.run_dir import RunDir
from dumbo.patch import auto, order
from dumbo.plan.longest import longest_numbers
from dumbo.plan.measure import Task, bisected
from dumbo.plan.meter import Full, Meter, meter
from dumbo.trainer.masters import idle_buckets
from dumbo.trainer.memory import ran_out
from dumbo.trainer.precision import dtype_for
from dumbo.trainer.sampler import GlobalBatches
from dumbo.trainer.seeds import seed_all

if TYPE_CHECKING:
    from dumbo.trainer.session import Session

STEPS = 2


class SameBatches(GlobalBatches):
    """The same global batch in every step."""

    def __init__(self, numbers: NDArray[np.int64], batch: Batch, seed: int) -> None:
        super().__init__(STEPS * batch.global_, batch, seed)
        self.numbers = numbers

    def global_batches(self, epoch: int) -> list[NDArray[np.int64]]:
        return [self.numbers] * STEPS


@dataclass
class Probe:
    """A loaded model, and what it is trained on.

    Attributes:
        task: see `measure.py`.
        run: a folder that is thrown away.
        meter: of this process's memory.
    """

    task: Task
    run: RunDir
    tokenizer: Any
    model: Any
    meter: Meter

    @classmethod
    def load(cls, task: Task, folder: Path) -> Probe:
        """As `train.py` does it."""
        plugins, data = task.plugins, task.data
        attention = str(getattr(plugins.model, "attn_implementation", "auto"))
        _import_first()
        run = RunDir(folder, Console(io.StringIO()), time.time(), verify_quick=False, attn_implementation=attention)
        gauge = meter(task.limit, task.ranks)
        tokenizer = plugins.model.load_tokenizer()
        patches = order.in_order(plugins.patches)
        if task.ranks == 1:
            patches = auto.added(plugins, patches, tokenizer, data, run)
        usable = {name: patch for name, patch in patches.items() if order.why_unavailable(name, patch) is None}
        kwargs = order.load_kwargs(usable)
        model = plugins.model.load_model(tokenizer, dtype=dtype_for(plugins, usable), **kwargs)
        seed_all(plugins.trainer)
        for patch in usable.values():
            model = patch.apply(model)
        return cls(task, run, tokenizer, model, gauge)

    def peak(self, micro: int) -> int:
        """Bytes at the peak with micro batches of this size.

        Raises:
            Full: they do not fit.
        """
        self.meter.begin()
        try:
            self._train(micro)
        except Exception as error:
            if not ran_out(error):
                raise
            raise Full(str(error)) from error
        return self.meter.end()

    def _train(self, micro: int) -> None:
        task = self.task
        # a rank of several holds its gradients all the time, in buckets: as in the second micro batch of a step
        passes = 2 if task.ranks > 1 else min(2, task.plugins.trainer.global_batch_size // micro)
        batch = Batch(passes * micro, micro, 1, passes)
        sft = replace(
            task.plugins.trainer, micro_batch_size=micro, global_batch_size=batch.global_, max_steps=STEPS, max_time=None,
            eval_every=None, eval_at_start=False, save_every=None, async_save=False, load_best_at_end=False, log_every=1,
        )  # fmt: skip
        session: Session = sft.session(self.model, self.tokenizer, task.data, self.run)
        trainer: Any = session.equipped(batch)
        trainer.order = SameBatches(longest_numbers(trainer.examples, task.data.train, batch.global_), batch, sft.seed)
        trainer.on_full = None  # no smaller micro batch instead
        trainer.on_row = trainer.on_bad = lambda told: None
        several = task.ranks > 1 and task.plugins.trainer.global_batch_size > task.ranks * micro
        beside = idle_buckets(self.model.parameters()) if several and sft.master_weights else 0
        trainer.buckets = torch.ones(beside, dtype=torch.uint8, device=trainer.args.device)  # as DDP has them
        trainer._save_checkpoint = lambda *arguments: None
        held_out = trainer.eval_examples
        if held_out is not None and task.data.eval is not None:
            numbers = longest_numbers(held_out, task.data.eval, micro)
            trainer.eval_examples = torch.utils.data.Subset(held_out, numbers.tolist())
        trainer.train()
        assert held_out is None or trainer.held_out is not None, "the last step measures the held-out loss"


def _import_first() -> None:
    """Libraries are not what a micro batch takes: on a CPU their code is counted as memory too."""
    import accelerate  # noqa: F401
    import peft  # noqa: F401
    import polars  # noqa: F401

    import dumbo.trainer.session  # noqa: F401


def main(words: Sequence[str]) -> int:
    """Measures what the parent sends, into FOLDER/peaks.jsonl: a line a size."""
    folder, parent = Path(words[0]), int(words[1])
    die_with(parent)
    sys.path[:] = pickle.load(sys.stdin.buffer)
    task: Task = pickle.load(sys.stdin.buffer)
    probe = Probe.load(task, folder)

    def peak(micro: int) -> int | None:
        found: int | None = None
        try:
            found = probe.peak(micro)
        except Full as full:
            print(full, file=sys.stderr)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.compiler.reset()
        with (folder / "peaks.jsonl").open("a") as file:
            file.write(json.dumps({"size": micro, "peak": found, "limit": probe.meter.limit}) + "\n")
        if found is None:
            sys.exit(0)
        return found

    bisected(task.sizes, peak, task.first)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
