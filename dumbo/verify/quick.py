"""What the proofs at a run's start need: the model as it trains, which is left as it was, and batches that are not too long.

    mask.py           trained tokens, decoded, are the assistant turns of the source rows
    pack_leak.py      another document in the pack changes nothing, and packed is as alone
    first_batch.py    labels, bos and end tokens; the loss of the unpatched model; gradients flow
    head_loss.py      the loss is that of the model's logits
    micro_batches.py  two micro batches are one; where output head and loss are one, they are the loss from the logits

A proof that does not hold ends the run (exit code 4): its numbers would have been wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import convert_outputs_to_fp32

from dumbo.trainer.bad_numbers import Watch
from dumbo.verify.excerpts import excerpts_of

if TYPE_CHECKING:
    from dumbo.prepare.store import Store
    from dumbo.trainer.engine import Engine

SHORT = 1024
"""Tokens of a document, at most, where layers run as written, without checkpointing, and logits are held: with two documents of
4,096 tokens an 8B took 72 GiB, whose steps take 51 on as many tokens of shorter documents."""


@contextmanager
def of_excerpts(
    engine: Engine, most: int | None = None, fewer: Callable[[Store], Mapping[int, int]] = lambda store: {}
) -> Iterator[None]:
    """Inside, batches are made of excerpts of documents too long to hold their logits (`excerpts.py`).

    Args:
        most: tokens of a document.
        fewer: documents (of those excerpts) of which there is to be less -> tokens.
    """
    store, collate = engine.store, engine.collate
    short = excerpts_of(store, most)
    engine.store = excerpts_of(store, most, fewer(short))
    engine.collate = replace(collate, store=engine.store)
    try:
        yield
    finally:
        engine.store, engine.collate = store, collate


@contextmanager
def untouched(engine: Engine) -> Iterator[None]:
    """Inside, the model computes as accelerate has it compute in training (autocast, what comes out in float32: losses that
    are taken from its logits are) and has no gradients; afterwards all is as it was.
    """
    model: Any = engine.model
    device = engine.args.device
    training = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    forward = vars(model).get("forward")  # Liger puts one on the instance
    pending, watch = engine.pending, engine.watch
    engine.pending, engine.watch = deque(), Watch(engine.store, engine.world, watch.run)
    model.zero_grad()
    if engine.args.bf16:
        model.forward = convert_outputs_to_fp32(torch.autocast(device.type, dtype=torch.bfloat16)(model.forward))
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        if forward is not None:
            model.forward = forward
        elif engine.args.bf16:
            del model.forward
        engine.pending, engine.watch = pending, watch
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, mode in training:
            module.training = mode
