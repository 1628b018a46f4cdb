"""Going on from a checkpoint: which one, with counters and metrics.jsonl set back to it. Told by `session.py`.

All ranks go on from the same one, which rank 0 finds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from dumbo.errors import UserError
from dumbo.outputs.same_config import newest_step, past
from dumbo.prepare.packing import pack
from dumbo.trainer.checkpoint import BadCheckpoint

if TYPE_CHECKING:
    from dumbo.batch import Batch
    from dumbo.outputs.run_dir import RunDir
    from dumbo.prepare.store import PreparedSplits
    from dumbo.trainer.session import SftTrainer
    from dumbo.trainer.sft import Sft


def going_on_from(run: RunDir, sft: Sft, trainer: SftTrainer, steps: int) -> Path | None:
    """The checkpoint; None: from the start.

    Args:
        steps: of the whole run.

    Raises:
        BadCheckpoint: none of those that are there is whole; on every rank.
    """
    if not run.resuming:
        return None
    found = _newest_good(run, trainer)
    if found is None:
        run.console.row("resume", "there is no checkpoint yet: from the start")
        run.cut_metrics(-1)
        return None
    done = steps_done(found)
    trainer.restore_counters(found)
    run.cut_metrics(done)
    run.console.row("resume", f"from {found.name}" + (", its last step" if done >= steps else ""))
    if trainer.eval_examples is not None:
        trainer.evaluate_first = run.world.share(_evaluation_is_due(run, sft, done, steps))
    return found


def require_epochs_ahead(run: RunDir, sft: Sft, data: PreparedSplits, batch: Batch) -> None:
    """Before any weight is loaded. Where `max_steps` is set it was compared when the run was claimed.

    Raises:
        UserError: the run is further than its epochs are to go.
    """
    if not run.resuming or sft.max_steps:
        return
    split = data.train
    packs = pack(split.lengths, split.documents, data.max_seq_len, sft.seed) if sft.packing else None
    steps = math.ceil((len(split) if packs is None else len(packs)) / batch.global_) * sft.num_epochs
    if (done := newest_step(run)) > steps:
        raise UserError(past(done, f"its new end at {steps:,} (trainer.num_epochs={sft.num_epochs})", run))


def steps_done(checkpoint: Path | None) -> int:
    """Optimizer steps up to a checkpoint."""
    return int(json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]) if checkpoint else 0


def _newest_good(run: RunDir, trainer: SftTrainer) -> Path | None:
    """As rank 0 finds it: looking at all its bytes once is enough."""
    found: Path | None = None
    fault: BadCheckpoint | None = None
    if run.world.main:
        try:
            found = trainer.checkpoints.newest_good(lambda text: run.console.row("resume", text))
        except BadCheckpoint as error:
            fault = error
    said, text = run.world.share((str(found) if found else None, str(fault) if fault else None))
    if text is not None:
        raise BadCheckpoint(text) from fault
    return Path(said) if said else None


def _evaluation_is_due(run: RunDir, sft: Sft, done: int, steps: int) -> bool:
    """Whether a stop left out the evaluation that belongs to the step gone on from."""
    every = [number for number in (sft.eval_every, sft.save_every) if number]
    due = done >= steps or any(done % number == 0 for number in every)
    return due and not any(row["step"] == done and "eval_loss" in row for row in run.metrics())
