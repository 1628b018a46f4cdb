"""`trainer=sft`: supervised fine-tuning on transformers' Trainer (with formatter=text: pretraining).

plan the batches -> prove -> answer held-out prompts -> train -> answer them again -> save
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dumbo.batch import Batch
from dumbo.errors import UserError
from dumbo.model.sizes import require_seed
from dumbo.suggest import did_you_mean
from dumbo.trainer.extra import refusal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.outputs.run_dir import RunDir
    from dumbo.prepare.store import PreparedSplits
    from dumbo.trainer.session import Session


@dataclass(frozen=True, kw_only=True)
class Sft:
    """Trains on next-token loss over the tokens that the formatter marked.

    Args:
        lr: peak learning rate.
        lr_scheduler: transformers' name of the schedule.
        warmup_steps: steps of linear warm-up; below 1: a share of all steps.
        weight_decay: of weight matrices (not norms, biases).
        max_grad_norm: gradients are clipped to it; 0: not.
        optimizer: transformers' name (its `optim`).
        global_batch_size: examples an optimizer step, all ranks together; with packing: packs.
        micro_batch_size: examples (packs) a rank and forward pass; auto: the most that fits, by what divides the global
            batch (on a GPU measured on the longest batch, on a CPU predicted).
        max_seq_len: tokens a row.
        too_long: truncate_left, truncate_right, drop, or split for longer examples.
        packing: whole documents side by side in one row, kept apart; false: padded, by length.
        num_epochs: passes over the data.
        max_steps: optimizer steps; wins over num_epochs.
        max_time: seconds, or as 90m, 2h30m: the run saves and ends by then.
        precision: auto, bf16 or fp32.
        master_weights: under bf16, weights that train are kept in bf16 for the arithmetic, and in float32 for the
            optimizer and the sum of micro batches; false: in float32 alone, rounded at every use.
        seed: of order, dropout, new weights.
        eval_every, save_every, log_every: steps.
        eval_at_start: held-out loss before the first step.
        async_save: checkpoints are written from a copy in the CPU's memory while training goes on; null: where training
            is on a GPU and there is memory for it.
        save_total_limit: checkpoints kept, the best one not counted.
        load_best_at_end: model/ holds the checkpoint with the lowest held-out loss.
        prefetch: on a GPU, the next step's batches are made while this one trains.
        cuda_graphs: on a GPU, forward and backward passes are captured once and replayed, which takes Python out of the
            step (with patch=[compile,chunked_loss], packing, bf16, one process); null: where launching them takes longer
            than computing them; true: an error where they cannot be. Without a GPU they are left out, and the panel says so.
        max_bad_steps: steps in a row with a loss or gradient that is not finite (each is skipped, and named), after
            which weights and optimizer go back to the last checkpoint; the second time the run ends.
        num_samples: held-out prompts for samples.md.
        num_answers: held-out questions for exact match, where the data has answers.
        max_new_tokens: longest answer; null: from the references.
        extra: further TrainingArguments by transformers' names.
    """

    lr: float = 1e-4
    lr_scheduler: str = "cosine"
    warmup_steps: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch_fused"
    global_batch_size: int = 16
    micro_batch_size: int | Literal["auto"] = 2
    max_seq_len: int = 2048
    too_long: Literal["truncate_left", "truncate_right", "drop", "split"] = "truncate_right"
    packing: bool = True
    num_epochs: int = 1
    max_steps: int | None = None
    max_time: float | str | None = None
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    master_weights: bool = False
    seed: int = 42
    eval_every: int | None = 100
    eval_at_start: bool = True
    save_every: int | None = 100
    async_save: bool | None = None
    save_total_limit: int = 2
    load_best_at_end: bool = False
    log_every: int = 1
    prefetch: bool = True
    cuda_graphs: bool | None = None
    max_bad_steps: int = 5
    num_samples: int = 3
    num_answers: int = 100
    max_new_tokens: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least("lr", self.lr, 0)
        _at_least("warmup_steps", self.warmup_steps, 0)
        _at_least("weight_decay", self.weight_decay, 0)
        _at_least("max_grad_norm", self.max_grad_norm, 0)
        _at_least("max_seq_len", self.max_seq_len, 2)
        for name in (
            "num_epochs",
            "max_steps",
            "eval_every",
            "save_every",
            "log_every",
            "save_total_limit",
            "max_new_tokens",
            "max_bad_steps",
        ):
            _at_least(name, getattr(self, name), 1)
        for name in ("num_samples", "num_answers"):
            _at_least(name, getattr(self, name), 0)
        require_seed(self.seed, "trainer.seed")
        if self.master_weights and self.precision == "fp32":
            raise UserError("trainer.master_weights is for bf16.\n  Write trainer.precision=bf16, or leave it out")
        for key in self.extra:
            if (reason := refusal(key)) is not None:
                raise UserError(f"trainer.extra.{key}: {reason}")

    def problems(self) -> Iterable[str]:
        from dumbo.trainer.names import optimizer_names, scheduler_names, training_argument_names

        for key, value, names in (
            ("lr_scheduler", self.lr_scheduler, scheduler_names()),
            ("optimizer", self.optimizer, optimizer_names()),
        ):
            if names and value not in names:
                yield f"trainer.{key} has no choice '{value}'.{did_you_mean(value, names)}\n  choices: {', '.join(names)}"
        known = training_argument_names()
        for key in self.extra:
            if known and key not in known:
                yield f"trainer.extra.{key}: transformers' TrainingArguments has no '{key}'.{did_you_mean(key, known)}"
        if self.max_time is not None:
            from dumbo.trainer.duration import seconds_of

            try:
                seconds_of(self.max_time)
            except UserError as error:
                yield f"trainer.{error}"

    def batch(self, ranks: int) -> Batch:
        """The batch arithmetic; with `auto` one example a pass, until it is settled. Raises UserError when it does not divide."""
        return Batch.of(self.global_batch_size, 1 if self.micro_batch_size == "auto" else self.micro_batch_size, ranks)

    def check_data(self, data: PreparedSplits, run: RunDir) -> None:
        """What cannot be trained on this data, found before any weights are loaded.

        Raises:
            UserError: a resumed run is further than it is to go, no held-out loss to choose the best checkpoint by, master
                weights where they have nothing to keep, or arguments, a schedule or an optimizer that transformers refuses.
        """
        from dumbo.model.dtype import resolved_precision
        from dumbo.outputs.halvings import settled
        from dumbo.trainer.arguments import training_arguments
        from dumbo.trainer.going_on import require_epochs_ahead
        from dumbo.trainer.masters import refuse
        from dumbo.trainer.schedule import measurable, require_optimizer, require_schedule

        evaluates = measurable(data.eval)
        if self.load_best_at_end and not evaluates:
            raise UserError(
                "trainer.load_best_at_end needs a held-out loss to choose by, and nothing is held out.\n"
                "  Write dataset.eval_fraction=0.05, or leave trainer.load_best_at_end out."
            )
        batch = settled(run, self.batch(run.ranks), self.micro_batch_size)
        require_epochs_ahead(run, self, data, batch)
        if self.master_weights:
            refuse(resolved_precision(self.precision), run.wrapped_in)
        args = training_arguments(self, run.path, batch, evaluates=evaluates)
        most_steps = math.ceil(len(data.train) / batch.global_) * self.num_epochs  # packs are fewer than documents
        require_schedule(args, self.max_steps or most_steps)
        require_optimizer(args)

    def check_model(self, model: PreTrainedModel, run: RunDir) -> None:
        """What this run cannot do with the patched model.

        Raises:
            UserError: it cannot be sharded.
        """
        from dumbo.trainer.sharded import require_shardable

        if run.wrapped_in == "FSDP2":
            require_shardable(model)

    def first_examples(self, data: PreparedSplits, ranks: int) -> list[NDArray[np.int64]]:
        """The documents of each example of the first micro batch (rank 0's)."""
        from dumbo.prepare.packing import pack
        from dumbo.trainer.collate import Examples
        from dumbo.trainer.sampler import GlobalBatches

        split = data.train
        packs = pack(split.lengths, split.documents, data.max_seq_len, self.seed) if self.packing else None
        examples = Examples(packs, split.documents)
        lengths = split.lengths if packs is None else None
        return [
            examples[one] for one in next(iter(GlobalBatches(len(examples), self.batch(ranks), self.seed, lengths)))
        ]

    def train(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: PreparedSplits, run: RunDir
    ) -> dict[str, Any]:
        """Trains, and returns the final metrics (run.json, `metrics`)."""
        return self.session(model, tokenizer, data, run).train()

    def session(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: PreparedSplits, run: RunDir
    ) -> Session:
        """What `train` runs, not begun: `verify` looks at its batches and takes single steps."""
        from dumbo.trainer.session import Session

        return Session(self, model, tokenizer, data, run)


def _at_least(name: str, value: float | None, least: float) -> None:
    if value is not None and value < least:
        raise UserError(f"trainer.{name} must be at least {least}, got {value:g}.")
