"""What enters the model first, and what comes of it: three more of the quick proofs (`quick.py`).

tokens          labels stand where their tokens are, no document begins with bos twice, end tokens are labelled
loss            the trainer's loss of the batch, patched and packed as in training, is that of the unpatched model
gradient flow   each parameter that is to train gets a finite gradient, and one that is not zero within two steps; no
                other parameter gets one. Two steps: A's gradient is zero while B is, in an adapter

Loss and gradients come from one pass in training mode without dropout; weights, random state and modes are as before.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dumbo.errors import ProofFailed
from dumbo.interfaces import IGNORE
from dumbo.trainer.feeding import trained_tokens
from dumbo.verify.mask import ends_untrained, spans_of
from dumbo.verify.no_dropout import without_dropout
from dumbo.verify.passes import layers_of
from dumbo.verify.quick import untouched
from dumbo.verify.rounding import of_mean_loss
from dumbo.verify.unpatched import approximated

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from dumbo.trainer.engine import Engine
    from dumbo.verify.unpatched import Examples, Unpatched

ROOM = 4
"""Times what rounding explains: a loss further off than that is another one. Where nothing is measured (float32), of a bound;
a run is not to be stopped by chance.
"""
STEP = 1e-3
"""By which weights are moved for the second step: as Adam's first step moves them with that learning rate."""
ONE_OF_MANY = re.compile(r"(experts?)\.\d+\.")
"""In names of parameters that belong to one expert. Experts in one tensor (all of transformers 5) are reached by any token."""
ROWS_OF_TOKENS = "trainable_tokens"
"""In names of peft's parameters for the rows of added tokens, which a few documents need not hold."""


def tokens_proof(batch: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """Looks at a micro batch as it enters the model.

    Args:
        batch: what `Collate` made.

    Raises:
        ProofFailed: a label is another token's, a document's first token or its bos twice, an end token has none.
    """
    bos = tokenizer.bos_token_id
    documents = 0
    for ids, labels in documents_of(batch):
        documents += 1
        trained = labels != IGNORE
        if not (labels[trained] == ids[trained]).all():
            at = int(np.flatnonzero(trained & (labels != ids))[0])
            raise ProofFailed(
                f"The labels of the first batch are not its tokens: at token {at} of a document the label is "
                f"{tokenizer.convert_ids_to_tokens(int(labels[at]))}, the token {tokenizer.convert_ids_to_tokens(int(ids[at]))}."
            )
        if trained[:1].any():
            raise ProofFailed(
                "In the first batch a document's first token is trained: the document before would predict it."
            )
        if bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos:
            raise ProofFailed(
                f"A document of the first batch begins with {tokenizer.bos_token} twice: {_start(ids, tokenizer)}\n"
                "  Leave it out of the template, or out of the texts."
            )
        for _, end in spans_of(trained):
            if ends_untrained(ids, end, tokenizer):
                raise ProofFailed(
                    f"In the first batch {tokenizer.convert_ids_to_tokens(int(ids[end]))}, which ends what is trained, is not "
                    f"trained: the model would not learn to stop.\n  {_start(ids, tokenizer)}"
                )
    return f"labels, bos and end tokens are right in {documents} documents"


def documents_of(batch: Mapping[str, Any]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(ids, labels) of each document of a micro batch that bears a label, whatever its layout."""
    ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    for row in range(len(ids)):
        if "position_ids" in batch:
            starts = np.flatnonzero(batch["position_ids"][row].numpy() == 0).tolist()
        else:
            starts = [0]
        whole = int(batch["attention_mask"][row].sum()) if "attention_mask" in batch else ids.shape[1]
        for start, end in zip(starts, [*starts[1:], whole], strict=True):
            if (labels[row, start:end] != IGNORE).any():
                yield ids[row, start:end], labels[row, start:end]


def _start(ids: NDArray[np.int64], tokenizer: PreTrainedTokenizerBase) -> str:
    return repr(str(tokenizer.decode(ids[:40].tolist(), clean_up_tokenization_spaces=False)))


def loss_and_flow_proofs(engine: Engine, examples: Examples, before: Unpatched | None) -> list[str]:
    """Loss and gradients of the first batch.

    Args:
        examples: documents of the first batch.
        before: the model as it was before any patch; None: it is not known.

    Raises:
        ProofFailed: the loss is another one than the unpatched model's, or a gradient is missing, not finite or too many.
    """
    model: Any = engine.model
    with untouched(engine), without_dropout(model):
        loss = _passed(engine, examples)
        said = [_loss_proof(engine, loss, before)]
        zero = _looked_at(model)
        if zero - excused(zero, _trained(model)):  # experts alone are not worth a copy of what trains
            documents = np.concatenate(examples)
            with _one_step_on(model):
                _passed(engine, [np.array([max(documents.tolist(), key=lambda d: engine.store.trained(d).sum())])])
                zero &= _looked_at(model)
        model.zero_grad()
    not_reached = excused(zero, _trained(model))
    if dead := sorted(zero - not_reached):
        raise ProofFailed(
            f"Gradients do not flow: {_named(dead)} would not learn: {_their(dead)} zero in the first batch, and after a step too."
        )
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    beside = f", {len(not_reached)} experts or rows of tokens not reached by it" if not_reached else ""
    return [*said, f"gradients reach {trained - len(not_reached)} of {trained} tensors that train{beside}, no other"]


def excused(zero: Collection[str], trained: Collection[str]) -> set[str]:
    """Of parameters without a gradient, those that a few tokens need not reach: rows of added tokens, and experts, as long as
    another expert of the same layer is reached.

    Args:
        zero: their names.
        trained: of all that train.
    """
    reached = {ONE_OF_MANY.sub(r"\1.*.", name) for name in trained if name not in zero}
    return {
        name
        for name in zero
        if ROWS_OF_TOKENS in name or (ONE_OF_MANY.search(name) and ONE_OF_MANY.sub(r"\1.*.", name) in reached)
    }


def _trained(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _passed(engine: Engine, examples: Examples) -> float:
    """A forward and backward pass as the trainer makes them; the gradients stay."""
    model: Any = engine.model
    model.train()
    model.zero_grad()
    batch = engine.collate(examples)
    every_rank = trained_tokens(batch) * engine.world.size  # all have the same batch: nothing is to be exchanged
    items = torch.tensor(max(1, every_rank), device=engine.args.device)
    inputs = engine._prepare_inputs({key: value for key, value in batch.items() if key != "documents"})
    loss = engine.compute_loss(model, inputs, num_items_in_batch=items)
    loss.backward()
    return float(loss.detach())


def _loss_proof(engine: Engine, loss: float, before: Unpatched | None) -> str:
    if before is None or before.loss is None:
        reason = before.why_not if before is not None else "the model came as it is"
        return f"first batch's loss not compared: {reason}"
    model: Any = engine.model
    dtype = torch.bfloat16 if engine.args.bf16 else model.dtype
    tokens = max(1, engine.store.trained_tokens(np.concatenate(before.examples)))
    allowed = of_mean_loss(dtype, layers_of(model), tokens, before.loss, before.error, room=ROOM)
    difference = abs(loss - before.loss)
    if (meant := approximated(before.patches)) is not None and np.isfinite(loss):
        return f"first batch's loss {loss:.4f}, unpatched {before.loss:.4f}: reported, not judged ({meant})"
    if not difference <= allowed.value:
        raise ProofFailed(
            f"The first batch's loss is {loss:.6f}, and of the model before any patch {before.loss:.6f}: {difference:.2g} apart, "
            f"{allowed.value:.1g} allowed ({allowed.source}).\n  A patch changes what the model computes: leave "
            "them out of patch=[…] one by one (performance=off: those that it added); dumbo verify names it."
        )
    return f"first batch's loss {loss:.4f} = unpatched to {difference:.0e} of {allowed.value:.0e}"


def _looked_at(model: Any) -> set[str]:
    """Names of the parameters whose gradient is zero.

    Raises:
        ProofFailed: one that trains has none or one that is not finite, one that does not train has one.
    """
    named = list(model.named_parameters())
    stray = [name for name, parameter in named if not parameter.requires_grad and parameter.grad is not None]
    if stray:
        raise ProofFailed(f"Gradients flow where nothing is to train: {_named(stray)}.")
    trained = [(name, parameter.grad) for name, parameter in named if parameter.requires_grad]
    absent = {name for name, gradient in trained if gradient is None}
    lacking = absent - excused(absent, _trained(model))
    if missing := [name for name, _ in trained if name in lacking]:
        raise ProofFailed(
            f"Gradients do not flow: {_named(missing)} would not learn, no gradient reaches {_them(missing)} in the first batch.\n"
            f"  If they are not to train: {_without(missing)}"
        )
    there = [(name, gradient) for name, gradient in trained if gradient is not None]
    if not there:
        raise ProofFailed("Nothing trains: no parameter of the model asks for a gradient.")
    largest = torch.stack([torch.linalg.vector_norm(gradient, torch.inf).float() for _, gradient in there]).cpu()
    wild = [name for (name, _), number in zip(there, largest.tolist(), strict=True) if not np.isfinite(number)]
    if wild:
        raise ProofFailed(f"Gradients of the first batch are not finite: {_named(wild)}.")
    return absent | {name for (name, _), number in zip(there, largest.tolist(), strict=True) if number == 0}


@contextmanager
def _one_step_on(model: Any) -> Iterator[None]:
    """Inside, what has a gradient has moved against it; afterwards the weights are as before, bit by bit."""
    moved = [p for p in model.parameters() if p.grad is not None and p.requires_grad]
    kept = [parameter.detach().clone() for parameter in moved]
    with torch.no_grad():
        for parameter in moved:
            parameter.sub_(STEP * torch.sign(parameter.grad).to(parameter.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, earlier in zip(moved, kept, strict=True):
                parameter.copy_(earlier)


def _without(missing: list[str]) -> str:
    """What to write so that parameters are left out of training (adapters and patch.freeze do not go together)."""
    if any(".lora_" in name for name in missing):
        return "patch.lora.target_modules=[NAME,…] with the layers that your data reaches"
    return "patch=[freeze] patch.freeze.freeze=[NAME]"


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _them(names: list[str]) -> str:
    return "it" if len(names) == 1 else "them"


def _their(names: list[str]) -> str:
    return "its gradient is" if len(names) == 1 else "their gradients are"
