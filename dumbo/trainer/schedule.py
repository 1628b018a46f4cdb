"""Whether a learning rate schedule can be made, before anything is trained with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError

if TYPE_CHECKING:
    from transformers import TrainingArguments


FOLLOW_HELD_OUT = ("reduce_lr_on_plateau", "greedy")
"""Schedules that are told the held-out loss."""


def require_held_out(name: str, evaluates: bool) -> None:
    """Raises a UserError for a schedule that follows the held-out loss where there is none."""
    if name in FOLLOW_HELD_OUT and not evaluates:
        raise UserError(
            f"trainer.lr_scheduler={name} follows the held-out loss, and nothing is held out.\n"
            "  Write dataset.eval_fraction=0.05 (and trainer.eval_every=STEPS), or trainer.lr_scheduler=cosine"
        )


def require_schedule(args: TrainingArguments, steps: int) -> str | None:
    """Makes the schedule on a throw-away optimizer.

    Args:
        steps: optimizer steps of the run.

    Returns:
        what the start panel should say of it, if anything.

    Raises:
        UserError: the schedule needs arguments of its own.
    """
    import torch
    from transformers import get_scheduler

    name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    warmup = args.get_warmup_steps(steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    try:
        own: Any = args.lr_scheduler_kwargs
        get_scheduler(name, optimizer, warmup, steps, scheduler_specific_kwargs=own)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"trainer.lr_scheduler={name} cannot be made: {error}.\n"
            "  Its own arguments go into trainer.extra.lr_scheduler_kwargs={name: value}"
        ) from error
    if warmup >= steps:
        return f"warm-up takes {warmup} steps: this run of {steps} ends before its peak learning rate"
    return None
