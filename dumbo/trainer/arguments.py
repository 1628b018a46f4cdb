"""The options of `trainer=sft` as transformers' TrainingArguments; what transformers refuses is said in the user's words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import torch
from transformers import TrainingArguments

from dumbo.batch import Batch
from dumbo.conform import misfit
from dumbo.errors import UserError
from dumbo.model.dtype import resolved_precision
from dumbo.trainer.schedule import require_held_out

if TYPE_CHECKING:
    from dumbo.trainer.sft import Sft


def training_arguments(
    sft: Sft, folder: Path, batch: Batch, *, evaluates: bool, fsdp: dict[str, Any] | None = None
) -> TrainingArguments:
    """transformers' TrainingArguments for this trainer.

    Args:
        folder: its output_dir.
        batch: the arithmetic.
        evaluates: whether anything is held out.
        fsdp: options of FSDP2; None: not sharded.
    """
    require_held_out(sft.lr_scheduler, evaluates and sft.eval_every is not None)
    own = {**_own(sft, folder, batch, evaluates), **_of_ranks(batch, fsdp)}
    hints = get_type_hints(TrainingArguments)
    for key, value in sft.extra.items():
        if key in hints and (wanted := misfit(value, hints[key])) is not None:
            raise UserError(f"trainer.extra.{key} must be {wanted}, got {value!r}.")
    try:
        args = TrainingArguments(**{**own, **sft.extra})
    except (TypeError, ValueError, ImportError) as error:
        where = "trainer.extra" if sft.extra else "trainer"
        raise UserError(f"{where}: transformers refuses it: {str(error).strip()}") from error
    if args.n_gpu > 1:  # CUDA was there before launch=single could choose a device (a notebook)
        raise UserError(
            f"One process would be spread over {args.n_gpu} GPUs.\n  Set CUDA_VISIBLE_DEVICES=0 before Python starts."
        )
    return args


def _own(sft: Sft, folder: Path, batch: Batch, evaluates: bool) -> dict[str, Any]:
    never = 10**12
    return {
        "output_dir": str(folder),
        "learning_rate": sft.lr,
        "lr_scheduler_type": sft.lr_scheduler,
        "warmup_steps": sft.warmup_steps,
        "weight_decay": sft.weight_decay,
        "max_grad_norm": sft.max_grad_norm,
        "optim": sft.optimizer,
        "per_device_train_batch_size": batch.micro,
        "per_device_eval_batch_size": batch.micro,
        "gradient_accumulation_steps": batch.accumulation,
        "num_train_epochs": sft.num_epochs,
        "max_steps": sft.max_steps or -1,
        "bf16": resolved_precision(sft.precision) == "bf16",
        "seed": sft.seed,
        "data_seed": sft.seed,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": sft.eval_every or never,
        "eval_on_start": evaluates and sft.eval_at_start,
        "save_strategy": "steps",
        "save_steps": sft.save_every or never,
        "metric_for_best_model": "loss" if evaluates else None,
        "greater_is_better": False if evaluates else None,
        "logging_strategy": "steps",
        "logging_steps": sft.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "use_cpu": not torch.accelerator.is_available(),  # else it refuses bf16 there
    }


def _of_ranks(batch: Batch, fsdp: dict[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if batch.ranks > 1:
        # every trainable parameter is used in every pass; looking for others costs a walk of the graph a step
        found |= {"ddp_find_unused_parameters": False, "ddp_broadcast_buffers": False}
    if fsdp is not None:
        found |= {"fsdp": "full_shard", "fsdp_config": {"version": 2, **fsdp}}
    return found
