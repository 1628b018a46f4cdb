"""The quick proofs that take the trainer, as it is about to train; what they prove, in words.

Pipeline: load -> patch -> batches laid out and proven apart (`trainer/layout.py`) -> here -> the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dumbo.patch.chunked_loss import takes_places
from dumbo.patch.modules import base_of
from dumbo.verify.excerpts import Excerpts
from dumbo.verify.first_batch import loss_and_flow_proofs, tokens_proof
from dumbo.verify.head_loss import head_loss_proof
from dumbo.verify.micro_batches import (
    ACCUMULATION,
    accumulation_proof,
    fused_loss_proof,
    unequal,
    unlike_documents,
)
from dumbo.verify.quick import SHORT, of_excerpts
from dumbo.verify.unpatched import few

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.prepare.store import Split
    from dumbo.trainer.engine import Engine
    from dumbo.verify.unpatched import Examples, Unpatched


def proven_at_start(
    trainer: Engine,
    tokenizer: PreTrainedTokenizerBase,
    data: Split,
    first: Callable[[], Examples],
    before: Unpatched | None,
) -> list[str]:
    """A line a proof.

    Args:
        data: what is trained on.
        first: gives the documents of the first batch, by example.
        before: the model before any patch, and which documents it was seen on; None: it is not known.

    Raises:
        ProofFailed: one does not hold.
    """
    with of_excerpts(trainer):
        examples = before.examples if before is not None else []
        examples = examples or few(first(), trainer.store, trainer.model)
        whole = replace(trainer.collate, store=data.store, room=None)
        proofs = [tokens_proof(whole(examples), tokenizer), *loss_and_flow_proofs(trainer, examples, before)]
        with of_excerpts(trainer, SHORT):
            proofs.append(head_loss_proof(trainer, examples))
        proofs += _of_two(trainer, data)
        if isinstance(trainer.store, Excerpts):
            proofs.append(f"losses and gradients of longer documents: of excerpts of {trainer.store.most:,} tokens")
    return proofs


def _of_two(trainer: Engine, data: Split) -> list[str]:
    """Of micro batches of two documents."""
    unlike = unlike_documents(data)
    if len(unlike) < 2:
        return ["accumulation not proven: that takes two documents, and there is one"]
    model: Any = trainer.model
    if getattr(base_of(model).config.get_text_config(), "output_router_logits", False):
        return ["accumulation not proven: the router's loss is of each micro batch"]
    tolerance = ACCUMULATION[trainer.args.bf16 or str(model.dtype) != "torch.float32"]
    with of_excerpts(trainer, SHORT, unequal(unlike)):
        found = [accumulation_proof(trainer, trainer.collate, unlike, tolerance)]
        if takes_places(model):
            found.append(fused_loss_proof(trainer, trainer.collate, unlike, tolerance))
    return found
