"""What the trainer asks of the data: how long a row may be, and what becomes of a longer one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError
from dumbo.prepare.prepare import prepare

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.interfaces import Formatter, Splits
    from dumbo.outputs.console import Console
    from dumbo.prepare.store import PreparedSplits

UNBOUNDED = 1 << 30


def plan_length(trainer: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """`trainer.max_seq_len`, checked against the model's context.

    Raises:
        UserError: the model's positions end earlier.
    """
    context = tokenizer.model_max_length if tokenizer.model_max_length < UNBOUNDED else None
    wanted = int(getattr(trainer, "max_seq_len", context or 2048))
    if context is not None and wanted > context:
        raise UserError(
            f"trainer.max_seq_len is {wanted:,}, but the model's context is {context:,} tokens.\n  Write trainer.max_seq_len={context}"
        )
    return wanted


def prepare_for(
    trainer: Any,
    splits: Splits,
    formatter: Formatter,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_len: int,
    console: Console,
) -> PreparedSplits:
    """Prepares the data as the trainer wants it, with a bar."""
    with console.counter("preparing") as bar:
        return prepare(
            splits,
            formatter,
            tokenizer,
            max_seq_len=max_seq_len,
            too_long=str(getattr(trainer, "too_long", "truncate_right")),
            progress=bar.update,
        )
