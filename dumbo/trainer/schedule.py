"""Whether a learning rate schedule can be made, before anything is trained with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError

if TYPE_CHECKING:
    from transformers import TrainingArguments


def require_schedule(args: TrainingArguments, steps: int) -> None:
    """Makes the schedule on a throw-away optimizer.

    Args:
        steps: optimizer steps of the run.

    Raises:
        UserError: the schedule needs arguments of its own, or evaluation, or more steps than there are.
    """
    import torch
    from transformers import get_scheduler

    name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    warmup = args.get_warmup_steps(steps)
    if warmup > steps:
        raise UserError(
            f"trainer.warmup_steps is {warmup}, but the run has only {steps} steps: it would end before its peak "
            f"learning rate.\n  Write trainer.warmup_steps=0.1 (a share of all steps)"
        )
    if name in ("reduce_lr_on_plateau", "greedy") and args.eval_strategy == "no":
        raise UserError(
            f"trainer.lr_scheduler={name} follows the held-out loss, and nothing is held out.\n"
            "  Write dataset.eval_fraction=0.05, or trainer.lr_scheduler=cosine"
        )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    try:
        own: Any = args.lr_scheduler_kwargs
        get_scheduler(name, optimizer, warmup, steps, scheduler_specific_kwargs=own)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"trainer.lr_scheduler={name} cannot be made: {error}.\n"
            "  Its own arguments go into trainer.extra.lr_scheduler_kwargs={name: value}"
        ) from error
