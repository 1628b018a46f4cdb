"""Proof: a document in a pack is the document alone, and the others in its pack are nothing to it.

packed = unpacked   the loss of every next token of a few documents of this data, in one pack as training makes it, and
                    each document alone, unpacked, by the same model.
no leak             the documents around others are replaced by random ones of their length: the logits of those in
                    between stay. Bitwise: every product has the same shape and the same numbers in the rows that count.
                    Experts are the exception: how many tokens share a product depends on the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dumbo.patch.modules import base_of
from dumbo.verify.experts import allowed_by_experts, composition_noise, has_experts, root_mean_square
from dumbo.verify.passes import alone, logits_of, looking, next_token_losses, same_losses, written
from dumbo.verify.proof import (
    EXACT,
    DoesNotApplyError,
    Proof,
    Tolerance,
    measured,
)

if TYPE_CHECKING:
    from dumbo.trainer.engine import Engine
    from dumbo.verify.subject import Subject

REMEDY = "Write trainer.packing=false, or another model.attn_implementation (dumbo doctor lists them)."


def packed(subject: Subject) -> list[Proof]:
    """Both proofs, on `subject.documents` in one pack."""
    if not subject.packed:
        raise DoesNotApplyError("trainer.packing=false: a row is one document")
    documents = subject.need_documents(2)
    engine = subject.trainer
    if subject.not_isolated is not None:
        return [
            Proof(name=name, compared="random documents in a pack, on the loaded weights", difference=None,
                  tolerance=None, source=EXACT, passed=False, detail=subject.not_isolated)
            for name in ("packed = unpacked", "no leak")
        ]  # fmt: skip
    with looking(engine):
        batch = engine.collate([np.array(documents)])
        together = _apart(engine, documents, logits_of(engine, batch).logits)
        scale = max(float(logits.abs().max()) for logits in together)
        changed = _apart(engine, documents, logits_of(engine, _others_replaced(engine, documents, batch)).logits)
        return [
            _same_as_alone(subject, documents, together),
            _no_leak(subject, documents, together, changed, scale),
        ]


def _apart(engine: Engine, documents: list[int], logits: torch.Tensor) -> list[torch.Tensor]:
    """(T, V) of each document of the pack in row 0."""
    lengths = [int(engine.store.lengths[document]) for document in documents]
    return list(logits[0, : sum(lengths)].split(lengths))


def _same_as_alone(subject: Subject, documents: list[int], together: list[torch.Tensor]) -> Proof:
    engine = subject.trainer
    differences = []
    for document, in_pack in zip(documents, together, strict=True):
        ids = torch.from_numpy(engine.store.ids(document))
        differences.append(next_token_losses(in_pack, ids) - alone(subject, document).losses)
    difference, allowed = same_losses(subject, documents, differences)
    return measured(
        "packed = unpacked",
        f"loss of each of {sum(map(len, differences)):,} next tokens of {len(documents)} documents, in one pack and alone (root mean square)",
        difference,
        allowed,
        f"A document's loss depends on what it is packed with: {_worst(subject, documents, differences)}.\n{REMEDY}",
    )


def _worst(subject: Subject, documents: list[int], differences: list[torch.Tensor]) -> str:
    """The document that is furthest from itself."""
    furthest = [float(each.abs().max()) if len(each) else 0.0 for each in differences]
    number = int(np.argmax(furthest))
    return f"{subject.trainer.store.source(documents[number])} by {furthest[number]:.2g} nats at one token"


def _others_replaced(engine: Engine, documents: list[int], batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with random tokens in the first document, and in the last of three or more."""
    lengths = [int(engine.store.lengths[document]) for document in documents]
    size = base_of(engine.model).config.get_text_config().vocab_size
    ids = batch["input_ids"].clone()
    random = np.random.default_rng(0)
    for number in _replaced(documents):
        start = sum(lengths[:number])
        new = torch.from_numpy(random.integers(0, size, lengths[number]))
        ids[0, start : start + lengths[number]] = new
    return {**batch, "input_ids": ids}


def _replaced(documents: list[int]) -> list[int]:
    return [0, len(documents) - 1] if len(documents) > 2 else [0]


def _no_leak(
    subject: Subject, documents: list[int], before: list[torch.Tensor], after: list[torch.Tensor], scale: float
) -> Proof:
    experts = has_experts(subject.trainer.model)
    replaced = _replaced(documents)
    kept = [number for number in range(len(documents)) if number not in replaced]
    differences = [a.float() - b.float() for a, b in zip(before, after, strict=True)]
    moved = [root_mean_square(each) if experts else float(each.abs().max()) for each in differences]
    largest = float(np.max([moved[number] for number in kept]))  # nan stays
    around = f"the {len(replaced)} around them are replaced" if len(replaced) > 1 else "the one before is replaced"
    compared = (
        f"all logits of {len(kept)} document{'s' * (len(kept) != 1)}, before and after {around} "
        f"(whose own move by {min(moved[number] for number in replaced):.2g})"
    )
    fault = f"Another document in the pack changes a document's logits, by {largest:.2g} of {scale:.2g}.\n{REMEDY}"
    if not all(moved[number] > 0 for number in replaced):
        largest, fault = (
            float("nan"),
            "The logits of the replaced documents did not move: the model does not see its tokens.",
        )
    allowed = Tolerance(0.0, "bitwise")
    if experts:
        allowed = _made_by_experts(subject, [documents[number] for number in kept], before)
        compared += ", root mean square"
    return measured("no leak", compared, largest, allowed, fault)


def _made_by_experts(subject: Subject, kept: list[int], logits: list[torch.Tensor]) -> Tolerance:
    """What the very documents differ by when another row of a padded batch is replaced."""
    engine = subject.trainer
    ids = [torch.from_numpy(engine.store.ids(document)) for document in kept]
    vocabulary = base_of(engine.model).config.get_text_config().vocab_size
    with written(engine):
        noise = composition_noise(lambda batch: logits_of(engine, batch).logits, ids, vocabulary)
    return allowed_by_experts(noise, subject.dtype, root_mean_square(torch.cat(logits).float()))
