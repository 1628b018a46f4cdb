"""What training is going to do, as the start panel and run.json have it. Told by `session.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumbo.outputs.halvings import facts_of, reminder

if TYPE_CHECKING:
    from dumbo.batch import Batch
    from dumbo.outputs.run_dir import RunDir
    from dumbo.prepare.packing import Packs
    from dumbo.prepare.store import PreparedSplits
    from dumbo.trainer.sft import Sft


def show_batches(
    run: RunDir, sft: Sft, data: PreparedSplits, batch: Batch, packs: Packs | None, layout: str, epoch: int, steps: int
) -> None:
    """Batch arithmetic, length and packing.

    Args:
        packs: None: not packed.
        layout: of a batch.
        epoch: steps of an epoch.
        steps: of the run.
    """
    if sft.max_steps:
        length = f"{steps:,} step{'s' * (steps != 1)} (trainer.max_steps wins over num_epochs; {steps / max(1, epoch):.2f} epochs)"
    else:
        length = f"{steps:,} step{'s' * (steps != 1)}, {sft.num_epochs} epoch{'s' * (sft.num_epochs != 1)}"
    run.console.row("batch", f"{batch}   {length}")
    if (reason := reminder(run, batch, sft.micro_batch_size)) is not None:
        run.console.row("", reason)
    packing: dict[str, Any] = {"layout": layout, "packs": None, "filled": None}
    if packs is not None:
        documents, trained = (amount / max(1, epoch) for amount in (len(data.train), data.train.trained_tokens))
        run.console.row(
            "",
            f"a step: {documents:,.1f} documents, {trained:,.0f} trained tokens on average, in packs of "
            f"{data.max_seq_len:,} tokens, {100 * packs.filled:.1f}% full",
        )
        packing |= {"packs": len(packs), "filled": round(packs.filled, 4)}
    run.update(batch=facts_of(batch), packing=packing, planned_steps=steps)
