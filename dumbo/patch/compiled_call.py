"""What is around the graph of a compiled layer (`compile.py`): torch's settings for it, checkpointing, alike inputs.

Past torch's limit of graphs for one kind of layer (8) torch would go on uncompiled without a word; here that ends the run.
Under DDP torch would cut a layer's graph where DDP's buckets of gradients end, to reduce a bucket inside of a layer. Here
one graph stays one, and its gradients are reduced when its backward graph has ended. These settings hold while these layers
are called, and for nothing else that is compiled in this process.
A checkpointed layer (`gradient_checkpointing.py`) is checkpointed around its graph: inside of one, torch 2.11 keeps what
`low_rank.py` saves (0.69 GiB a layer of 8B's shape and 8,192 tokens, where 0.09 are right), and what it computes again
takes twice the memory while it does.
Behind frozen embeddings the first layer's input wants no gradient and all others' do, which would be two graphs. It is
asked for one: that is one more product with its query, key and value weights, and half of the compiling.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from dumbo.errors import RunFailed

LENGTHS = "L['kwargs']['max_length_q'],L['kwargs']['max_length_k']"
"""Numbers among a layer's arguments that differ from batch to batch: the longest document's length."""


def around(layer: Any, compiled: Callable[..., Any]) -> Callable[..., Any]:
    """What `layer` is called by.

    Args:
        compiled: what `Module.compile` made of it.
    """
    return alike_inputs(layer, checkpointed_around(layer, with_settings(compiled, type(layer).__name__)))


def with_settings(compiled: Any, name: str) -> Any:
    """A compiled layer that is one graph under DDP too, and raises where torch would have run it uncompiled from then on.

    Raises:
        RunFailed: more graphs than torch makes of one kind of layer.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit
    from torch.compiler import config as compiler

    def called(*arguments: Any, **kwargs: Any) -> Any:
        before = config.fail_on_recompile_limit_hit, config.optimize_ddp, compiler.dynamic_sources
        config.fail_on_recompile_limit_hit, config.optimize_ddp, compiler.dynamic_sources = True, False, LENGTHS
        try:
            return compiled(*arguments, **kwargs)
        except FailOnRecompileLimitHit as error:
            raise RunFailed(
                f"patch.compile: {name} needs more than the {config.recompile_limit} graphs that torch makes of "
                "one kind of layer.\n  Leave compile out of patch=[…], or write performance=off where that added it "
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


def alike_inputs(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    """A layer whose input has a gradient wherever something in it trains, and none where nothing does (transformers asks one
    of embeddings of a checkpointed model with adapters, in evaluation too), so that it is like those that come after it.
    Below the first layer that trains nothing is asked for: a backward pass through frozen layers is left out.
    """
    from torch import is_grad_enabled

    trains = any(parameter.requires_grad for parameter in layer.parameters())

    def called(*arguments: Any, **kwargs: Any) -> Any:
        kwargs.pop(
            "num_items_in_batch", None
        )  # the loss's, which transformers hands down: a batch with it is another graph
        if arguments and trains and arguments[0].requires_grad != is_grad_enabled():
            arguments = (arguments[0].detach().requires_grad_(is_grad_enabled()), *arguments[1:])
        return call(*arguments, **kwargs)

    return called
