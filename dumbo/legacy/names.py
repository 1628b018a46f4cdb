"""Names of the older plugin format, and what each is called here. Tables only: sections.py turns them into overrides."""

from __future__ import annotations

TRAINER_KEYS = {
    "batch_size": "global_batch_size", "physical_batch_size": "micro_batch_size", "learning_rate": "lr", "lr_scheduler_type": "lr_scheduler",
    "lr_scheduler": "lr_scheduler", "warmup_steps": "warmup_steps", "warmup_ratio": "warmup_steps", "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm", "optim": "optimizer", "optimizer": "optimizer", "num_train_epochs": "num_epochs", "epochs": "num_epochs",
    "num_epochs": "num_epochs", "max_steps": "max_steps", "seed": "seed", "eval_steps": "eval_every", "save_steps": "save_every",
    "logging_steps": "log_every", "max_seq_len": "max_seq_len", "max_seq_length": "max_seq_len", "max_length": "max_seq_len",
    "packing": "packing", "save_total_limit": "save_total_limit", "per_device_train_batch_size": "micro_batch_size",
}  # fmt: skip
HINTS = {
    "gradient_accumulation_steps": "It is batch_size / physical_batch_size: leave it out.",
    "fp16": "Write bf16: true, or leave it out (bf16 where the GPU has it, else fp32).",
    "task_type": "It is always CAUSAL_LM: leave it out.",
}
"""What to do about keys that follow from others."""
MOST_NAMED = 30
"""Keys listed in an error; further TrainingArguments are known too."""
TOKENIZER_KEYS = ("pad_token", "eos_token", "bos_token", "chat_template", "added_tokens")
LIGER_KEYS = ("rope", "rms_norm", "swiglu", "cross_entropy", "fused_linear_cross_entropy")
LORA_KEYS = {
    "r": "rank", "rank": "rank", "lora_alpha": "alpha", "alpha": "alpha", "lora_dropout": "dropout", "dropout": "dropout",
    "target_modules": "target_modules", "bias": "bias", "modules_to_save": "modules_to_save", "use_dora": "use_dora", "use_rslora": "use_rslora",
}  # fmt: skip
DATASET_TYPES = {
    "huggingface_polars": "hub", "huggingface": "hub", "csv_polars": "files", "json_polars": "files", "parquet_polars": "files",
}  # fmt: skip
FILE_KINDS = {"csv_polars": "csv", "json_polars": "auto", "parquet_polars": "parquet"}
PLUGINS = (
    "transformers", "transformers_trainer", "huggingface", "liger", "peft", "lora", "polars", "datasets", "jinja_formatter", "wandb",
    "chat_formatter", "accelerate",
)  # fmt: skip
"""Plugins of the older format; what they did is a group's choice, or always there."""
FORMATS = ("alpaca", "sharegpt", "messages", "prompt_completion", "question_answer", "text")
