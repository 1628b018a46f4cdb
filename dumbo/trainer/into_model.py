"""What a run leaves in model/: the last weights or the best ones, the tokenizer, how to generate. Told by `session.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumbo.launch.world import DISK
from dumbo.patch.modules import base_of, keep_cache
from dumbo.trainer.saving import save_tokenizer, save_weights
from dumbo.trainer.sharded import is_sharded, whole_weights

if TYPE_CHECKING:
    from dumbo.outputs.run_dir import RunDir
    from dumbo.trainer.session import SftTrainer


def load_best(run: RunDir, trainer: SftTrainer) -> None:
    """The weights of the checkpoint with the lowest held-out loss."""
    best, loss = trainer.counters.best_step, trainer.counters.best_loss
    assert best is not None, "check_data lets no run through without a held-out loss to choose by"
    assert loss is not None
    if best != trainer.state.global_step:
        trainer.load_weights(trainer.checkpoints.path(best))
    run.console.row("best", f"step {best}, held-out loss {loss:.4f}, goes into model/")


def save_model(run: RunDir, trainer: SftTrainer, model: Any, tokenizer: Any, ends: tuple[int, ...]) -> None:
    """Writes model/. All ranks call this: they gather what is sharded.

    Args:
        model: patched, as it was given to the trainer.
        ends: tokens that end an answer.
    """
    model = trainer.accelerator.unwrap_model(model)
    base = base_of(model)
    keep_cache(base, True)
    if getattr(base, "generation_config", None) is not None and ends:
        base.generation_config.eos_token_id = list(ends) if len(ends) > 1 else ends[0]
    folder = run.path / "model"
    weights = whole_weights(model) if is_sharded(model) else None  # all ranks gather, rank 0 has them
    if run.world.main:
        save_weights(model, folder, weights)
        save_tokenizer(tokenizer, folder)
        if base is not model and getattr(base, "generation_config", None) is not None:
            base.generation_config.save_pretrained(folder)
    run.world.barrier(DISK)
