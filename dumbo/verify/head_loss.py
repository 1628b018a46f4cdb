"""One more of the quick proofs (`quick.py`): the trainer's loss is that of the model's own logits.

In the first batch's comparison with the unpatched model all layers round, and in bf16 on few tokens a loss that is another
one by a percent may hide in that. Here both sides have the same layers: what is between them is the head and the loss alone,
which is where kernels replace them, where means are taken and smoothing is added.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dumbo.errors import ProofFailed
from dumbo.interfaces import IGNORE
from dumbo.patch.compile import as_written
from dumbo.trainer.feeding import trained_tokens
from dumbo.trainer.router import router_loss
from dumbo.verify.no_dropout import without_dropout
from dumbo.verify.passes import logits_of, loss_sum
from dumbo.verify.proof import Tolerance, tolerance_for
from dumbo.verify.quick import untouched
from dumbo.verify.rounding import ERRORS, HALF

if TYPE_CHECKING:
    from dumbo.trainer.engine import Engine
    from dumbo.verify.unpatched import Examples

TOKENS = 1024
"""Of the first batch, at most so many: their logits are held whole. The shortest document in any case."""


def head_loss_proof(engine: Engine, examples: Examples) -> str:
    """The first documents of the first batch, in training mode (some kernels work in no other) without dropout.

    Raises:
        ProofFailed: the losses differ.
    """
    model: Any = engine.model
    with untouched(engine), without_dropout(model), as_written(model), torch.no_grad():
        model.train()
        batch = replace(engine.collate, room=None)(_first(engine, examples))
        items = trained_tokens(batch)
        if not items:
            return "loss from logits not proven: the first documents have no trained token"
        outputs = logits_of(engine, batch)
        total = loss_sum(outputs.logits, batch["labels"], engine.args.label_smoothing_factor)
        extra = router_loss(model, outputs)
        wanted = float(total) / items + (float(extra) if extra is not None else 0.0)
        dtype = torch.bfloat16 if engine.args.bf16 else model.dtype
        allowed = _allowed(outputs.logits, batch["labels"], items, wanted, dtype)
        inputs = engine._prepare_inputs({key: value for key, value in batch.items() if key != "documents"})
        divisor = torch.tensor(items * engine.accelerator.num_processes, device=engine.args.device)
        got = float(engine.compute_loss(model, inputs, num_items_in_batch=divisor))
    difference = abs(got - wanted)
    if not difference <= allowed.value:
        raise ProofFailed(
            f"The loss is not that of the model's logits: {got:.6f}, and from them {wanted:.6f}: {difference:.2g} apart, "
            f"{allowed.value:.1g} allowed ({allowed.source}).\n  Leave out what replaces the loss: patch=[…] without liger and "
            "chunked_loss (performance=off where it was added), a patch of your own, or trainer.extra.label_smoothing_factor"
        )
    return f"loss = loss from logits to {difference:.0e} of {allowed.value:.0e}"


def _first(engine: Engine, examples: Examples) -> Examples:
    """Whole documents, from the first on, each example's in their order."""
    lengths = engine.store.lengths
    left, found = TOKENS, []
    for example in examples:
        kept = []
        for document in example.tolist():
            if lengths[document] <= left:
                left -= int(lengths[document])
                kept.append(document)
        if kept:
            found.append(np.array(kept))
    every = np.concatenate(examples)
    return found or [every[np.argmin(lengths[every])][None]]


def _allowed(logits: torch.Tensor, labels: torch.Tensor, items: int, loss: float, dtype: torch.dtype) -> Tolerance:
    """In nats. A logit in half precision is rounded by eps / sqrt(12) of its size, one more time or one time less on either
    side: eps / sqrt(6) at most, of the largest logit of each token, whose errors have no common direction. Sums in float32.
    """
    summed = tolerance_for(torch.float32, 0, factor=8, scale=max(1.0, abs(loss)))
    if dtype not in HALF:
        return replace(summed, value=ERRORS * summed.value, source=f"{ERRORS} x {summed.source}")
    bears = labels[:, 1:].to(logits.device) != IGNORE
    size = float(logits[:, :-1][bears].abs().amax(-1).float().square().mean().sqrt())
    rounded = ERRORS * torch.finfo(dtype).eps / 6**0.5 * size / items**0.5
    name = str(dtype).removeprefix("torch.")
    source = f"{ERRORS} x eps({name}) / sqrt(6) x {size:.3g}, the largest logits, / sqrt({items} tokens)"
    return Tolerance(rounded + ERRORS * summed.value, source)
