"""What is around the graph of a compiled layer (`compile.py`): torch's settings for it, checkpointing, alike inputs.

Past torch's limit of graphs for one kind of layer (8) torch would go on uncompiled without a word; here that ends the run, or
the layer goes on as it is written, with a word (`patch.compile.past_limit`).
Under DDP torch would cut a layer's graph where DDP's buckets of gradients end, to reduce a bucket inside of a layer. Here
one graph stays one, and its gradients are reduced when its backward graph has ended. These settings hold while these layers
are called, and for nothing else that is compiled in this process.
A checkpointed layer (`gradient_checkpointing.py`) is checkpointed around its graph: inside of one, torch 2.11 keeps what
`low_rank.py` saves (0.69 GiB a layer of 8B's shape and 8,192 tokens, where 0.09 are right), and what it computes again
takes twice the memory while it does.
Behind frozen embeddings the first layer's input wants no gradient and all others' do, which would be two graphs. It is
asked for one: that is one more product with its query, key and value weights (all of its attention, where the MLP alone has
adapters), and half of the compiling.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from dumbo.errors import RunFailed

LENGTHS = "L['kwargs']['max_length_q'],L['kwargs']['max_length_k']"
"""Numbers among a layer's arguments that differ from batch to batch: the longest document's length."""


PAST_LIMIT = "dumbo_past_limit"
"""Attribute of the layer that needed a graph more than torch makes: it and those like it go on without."""


def around(
    layer: Any,
    compiled: Callable[..., Any],
    rest: Callable[[], Iterable[Any]] | None = None,
    *,
    as_written: bool = False,
) -> Callable[..., Any]:
    """What `layer` is called by.

    Args:
        compiled: what `Module.compile` made of it.
        rest: gives the parameters of all else but the layers above; None: its inputs are left as they are.
        as_written: past torch's limit of graphs it goes on so.
    """
    graph = with_settings(compiled, layer, as_written)
    call = checkpointed_around(layer, graph)
    return call if rest is None else alike_inputs(layer, call, rest)


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What torch says of its limit while a layer is called, in place of its log, whatever that is set to: there is no other sign."""
    said: list[str] = []

    def passes(record: logging.LogRecord) -> bool:
        if "recompile_limit" in record.getMessage():
            said.append(record.getMessage())
            return False
        return not silent

    log = logging.getLogger("torch._dynamo.convert_frame")
    silent = log.disabled or not log.isEnabledFor(logging.WARNING)
    before = log.disabled, log.level
    log.addFilter(passes)
    if silent:
        log.disabled = False
        log.setLevel(logging.WARNING)
    try:
        yield said
    finally:
        log.removeFilter(passes)
        if silent:
            log.disabled = before[0]
            log.setLevel(before[1])


def _reason(said: list[str]) -> str:
    """Why torch would have made one more, in its words."""
    return next((line.strip() for line in "\n".join(said).splitlines() if "last reason" in line), "")


def with_settings(compiled: Any, layer: Any, as_written: bool = False) -> Any:
    """A compiled layer that is one graph under DDP too, and raises where torch would have run it uncompiled from then on.

    Args:
        layer: whose kind is named, and which is marked where it goes on uncompiled.
        as_written: torch may run it so (what it has graphs of stays compiled), and it is said once.

    Raises:
        RunFailed: more graphs than torch makes of one kind of layer, and not `as_written`.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit
    from torch.compiler import config as compiler

    name = type(layer).__name__

    def called(*arguments: Any, **kwargs: Any) -> Any:
        before = config.fail_on_recompile_limit_hit, config.optimize_ddp, compiler.dynamic_sources
        config.optimize_ddp, compiler.dynamic_sources = False, LENGTHS
        config.fail_on_recompile_limit_hit = not as_written
        try:
            if not as_written:
                return compiled(*arguments, **kwargs)
            with _heard() as said:
                result = compiled(*arguments, **kwargs)
            if said:
                setattr(layer, PAST_LIMIT, True)
                warnings.warn(
                    f"patch.compile: {name} needs more graphs than torch makes of one kind of layer; what has none goes on "
                    f"as it is written ({_reason(said)})",
                    stacklevel=2,
                )
            return result
        except FailOnRecompileLimitHit as error:
            raise RunFailed(
                f"patch.compile: {name} needs more than the {config.recompile_limit} graphs that torch makes of "
                "one kind of layer.\n  Write patch.compile.past_limit=as_written to go on without, or leave compile out of patch=[…] "
                "(TORCH_LOGS=recompiles tells what differs from call to call)"
            ) from error
        finally:
            config.fail_on_recompile_limit_hit, config.optimize_ddp, compiler.dynamic_sources = before

    return called


def checkpointed_around(layer: Any, graph: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled layer whose graph has no checkpointing in it: where the layer is to be checkpointed, the whole graph is.

    FSDP2's hooks are around the graph too, and know of passes that are done once more. transformers before 5.2x
    checkpoints around the call by itself.
    """
    from torch import is_grad_enabled
    from transformers.modeling_layers import GradientCheckpointingLayer

    by_itself = "__call__" in vars(GradientCheckpointingLayer)

    def unchecked(*arguments: Any, **kwargs: Any) -> Any:
        before = layer.gradient_checkpointing
        layer.gradient_checkpointing = False
        try:
            return graph(*arguments, **kwargs)
        finally:
            layer.gradient_checkpointing = before

    def called(*arguments: Any, **kwargs: Any) -> Any:
        if by_itself or not getattr(layer, "gradient_checkpointing", False):
            return graph(*arguments, **kwargs)
        if layer.training and is_grad_enabled():
            return layer._gradient_checkpointing_func(partial(unchecked, **kwargs), *arguments)
        return unchecked(*arguments, **kwargs)

    return called


def below(model: Any, layers: Sequence[Any]) -> Iterator[Any]:
    """A model's parameters, but for those of `layers`."""
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    return (parameter for parameter in model.parameters() if id(parameter) not in inside)


def alike_inputs(layer: Any, call: Callable[..., Any], rest: Callable[[], Iterable[Any]]) -> Callable[..., Any]:
    """A layer that trains has an input with a gradient, so that it is like those that come after it.

    One that does not has none where nothing else trains, above layers that do: transformers asks one of the embeddings of a
    checkpointed model, in evaluation too, and frozen layers would be passed back through. Where a norm, a head or something that
    looks at images trains, that is left as it is: what comes before the layers is not known of every model.
    """
    from torch import is_grad_enabled

    def called(*arguments: Any, **kwargs: Any) -> Any:
        kwargs.pop(
            "num_items_in_batch", None
        )  # the loss's, handed down by transformers: a batch with it is another graph
        if arguments:
            wanted = is_grad_enabled() and _train(layer.parameters())
            if arguments[0].requires_grad != wanted and (wanted or not _train(rest())):
                arguments = (arguments[0].detach().requires_grad_(wanted), *arguments[1:])
        return call(*arguments, **kwargs)

    return called


def _train(parameters: Iterable[Any]) -> bool:
    return any(parameter.requires_grad for parameter in parameters)
