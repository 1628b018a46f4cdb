"""Which of transformers' TrainingArguments `trainer.extra` may set: all that take effect and have no key of dumbo's.

What would do nothing here is refused by name rather than ignored. A test goes through all fields.
"""

from __future__ import annotations

OWN_KEYS = {
    "learning_rate": "lr", "lr_scheduler_type": "lr_scheduler", "warmup_steps": "warmup_steps", "warmup_ratio": "warmup_steps",
    "weight_decay": "weight_decay", "max_grad_norm": "max_grad_norm", "optim": "optimizer",
    "per_device_train_batch_size": "micro_batch_size", "per_device_eval_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "global_batch_size", "num_train_epochs": "num_epochs", "max_steps": "max_steps",
    "bf16": "precision", "fp16": "precision", "bf16_full_eval": "precision", "fp16_full_eval": "precision", "seed": "seed",
    "data_seed": "seed", "eval_steps": "eval_every", "eval_strategy": "eval_every", "do_eval": "eval_every",
    "eval_on_start": "eval_at_start", "save_steps": "save_every", "save_strategy": "save_every",
    "save_total_limit": "save_total_limit", "logging_steps": "log_every", "logging_strategy": "log_every",
    "load_best_model_at_end": "load_best_at_end", "auto_find_batch_size": "micro_batch_size", "group_by_length": "packing",
    "train_sampling_strategy": "packing",
}  # fmt: skip
"""transformers' name -> the key of `trainer` that sets it."""

ELSEWHERE = {
    "run_dir=FOLDER": ("output_dir", "run_name", "logging_dir", "project"),
    "tracker=[…]": ("report_to", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    "patch=[liger]": ("use_liger_kernel", "liger_kernel_config"),
    "patch=[gradient_checkpointing]": (
        "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing", "activation_checkpointing_kwargs",
    ),
    "patch=[compile]": ("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    "resume=auto": ("resume_from_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint"),
    "launch=NAME": ("fsdp", "fsdp_config", "deepspeed", "parallelism_config", "accelerator_config", "local_rank"),
}  # fmt: skip
"""Where dumbo sets it -> transformers' names."""

WITHOUT_EFFECT = {
    "the batches are dumbo's": ("remove_unused_columns", "label_names", "length_column_name", "dataloader_drop_last"),
    "the loss is a mean over the trained tokens of all ranks": ("average_tokens_across_devices",),
    "evaluation measures the held-out loss alone": (
        "prediction_loss_only", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object", "batch_eval_metrics",
        "include_for_metrics", "metric_for_best_model", "greater_is_better", "do_predict", "do_train",
    ),
    "every logged step has its numbers in metrics.jsonl": (
        "logging_first_step", "logging_nan_inf_filter", "include_num_input_tokens_seen", "skip_memory_metrics", "disable_tqdm",
    ),
    "libraries write into dumbo.log": ("log_level", "log_level_replica", "log_on_each_node"),
    "a checkpoint is complete and local": ("save_only_model", "save_on_each_node", "enable_jit_checkpoint"),
    "nothing is pushed; model/ is a Hugging Face folder": (
        "push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision",
    ),
    "training keeps no cache": ("use_cache",),
}  # fmt: skip
"""Why it would do nothing -> transformers' names."""


def refusal(key: str) -> str | None:
    """Why `trainer.extra.KEY` cannot be set, and what to write instead; None where it can."""
    if key in OWN_KEYS:
        return f"dumbo's own key for it is trainer.{OWN_KEYS[key]}."
    for instead, names in ELSEWHERE.items():
        if key in names:
            return f"this is set elsewhere: {instead}."
    for why, names in WITHOUT_EFFECT.items():
        if key in names:
            return f"it would have no effect: {why}. Leave it out."
    return None
