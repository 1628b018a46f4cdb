"""A model in training mode without what is random in it, so that two passes can be compared.

Training mode matters: some kernels compute another loss there (Liger's fused one), gradient checkpointing is on there.
Set to zero is every float of a module or its config whose name says dropout (`p` of torch's own, attention_dropout,
resid_pdrop, drop_path, layerdrop) or jitter (of a router); the values are put back afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

RANDOM = re.compile(r"drop|jitter")
"""In the names of such rates, in all models of transformers."""


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Every rate of dropout in the model is 0 inside, and as before afterwards.

    Args:
        model: any module; its training mode is left alone.
    """
    changed = [(owner, name, value) for owner in _owners(model) for name, value in _rates(owner)]
    for owner, name, _ in changed:
        setattr(owner, name, 0.0)
    try:
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)


def has_dropout(model: nn.Module) -> bool:
    """Whether any rate of dropout in the model is above 0."""
    return any(_rates(owner) for owner in _owners(model))


def _owners(model: nn.Module) -> list[Any]:
    """Modules, and the configs that they read."""
    modules = list(model.modules())
    configs = [config for module in modules if (config := getattr(module, "config", None)) is not None]
    nested = [inner for config in configs if (inner := getattr(config, "text_config", None)) is not None]
    return [*modules, *{id(config): config for config in [*configs, *nested] if hasattr(config, "__dict__")}.values()]


def _rates(owner: Any) -> list[tuple[str, float]]:
    own = isinstance(owner, nn.modules.dropout._DropoutNd)
    return [
        (name, value)
        for name, value in vars(owner).items()
        if type(value) is float and value > 0 and (RANDOM.search(name) or (own and name == "p"))
    ]
