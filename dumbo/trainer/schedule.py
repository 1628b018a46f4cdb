"""Whether what a run steps with can be made, before any weights are loaded: the held-out loss, schedule, optimizer; and the
schedule of a run that goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from dumbo.prepare.store import Split


FOLLOW_HELD_OUT = ("reduce_lr_on_plateau", "greedy")
"""Schedules that are told the held-out loss."""


def measurable(split: Split | None) -> bool:
    """Whether there is a held-out loss: something is held out, and a token of it bears the loss."""
    return split is not None and len(split) > 0 and split.trained_tokens > 0


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
        schedule = get_scheduler(name, optimizer, warmup, steps, scheduler_specific_kwargs=own)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"trainer.lr_scheduler={name} cannot be made: {error}.\n"
            "  Its own arguments go into trainer.extra.lr_scheduler_kwargs={name: value}"
        ) from error
    if steps == 1 and warmup > 0 and not any(schedule.get_last_lr()) and args.learning_rate > 0:
        return (
            "the only step has a learning rate of 0, with which warm-up begins: NOTHING IS LEARNED "
            "(trainer.warmup_steps=0, more trainer.num_epochs, or a smaller trainer.global_batch_size)"
        )
    if warmup >= steps:
        return f"warm-up takes {warmup} steps: this run of {steps} ends before its peak learning rate"
    return None


def require_optimizer(args: TrainingArguments) -> None:
    """Raises a UserError for an optimizer whose package is not here, or whose arguments it does not take."""
    import torch
    from transformers import Trainer

    stand_in: Any = torch.nn.Linear(1, 1)
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, stand_in)
        if getattr(kind, "__module__", "").startswith(("torch.optim", "transformers")):
            kind(stand_in.parameters(), **options)
    except (ImportError, ValueError, TypeError, NotImplementedError) as error:
        if args.optim_target_modules is not None and not isinstance(error, ImportError):
            return  # it looks for those modules in the real model
        name = getattr(args.optim, "value", args.optim)
        raise UserError(
            f"trainer.optimizer={name} cannot be made: {str(error).strip()}\n"
            "  Its own arguments go into trainer.extra.optim_args='NAME=VALUE,…'; else write trainer.optimizer=adamw_torch_fused"
        ) from error


def take_rates(schedule: Any, optimizer: Any) -> None:
    """The learning rates of a schedule at the step where it stands, into the optimizer.

    A checkpoint holds the rate of its own run's schedule for the next step. One that goes on for longer has another: at
    what was the last step of a cosine, 0 where the longer one has more.

    Args:
        schedule: as restored. One that is no function of the step (it follows the held-out loss) keeps what the checkpoint has.
        optimizer: whose groups it is for.
    """
    schedule = getattr(schedule, "scheduler", schedule)  # accelerate's wrapper
    if not hasattr(schedule, "lr_lambdas"):
        return
    rates = [
        base * rate(schedule.last_epoch) for base, rate in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if hasattr(group["lr"], "fill_"):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    schedule._last_lr = rates  # what get_last_lr returns, which is logged
