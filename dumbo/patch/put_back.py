"""Functions and classes that a library replaced for the whole process, recorded so that the next run starts without them.

    with recorded(model, "liger_kernel"): apply(model)      what it sets in modules and classes is remembered
    put_back()                                              all of it is as it was

Liger's functions set names in transformers' modules (`modeling_llama.LlamaRMSNorm`), in torch's (`cross_entropy`), and
rename classes. A model that is loaded later in the same process (the next run of a notebook, of a sweep) would be built from them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

WHERE = ("transformers", "torch.nn")
"""Packages whose modules are looked at."""
_ABSENT = object()
_replaced: list[tuple[Any, str, Any]] = []
"""(module or class, name, what stood there before)."""
_switched: list[Callable[[], None]] = []
"""What puts back other things of the process."""


@contextmanager
def recorded(model: nn.Module, library: str) -> Iterator[None]:
    """Inside, what comes to stand in modules and classes and is `library`'s own is remembered, and renamed classes."""
    before = [(owner, dict(vars(owner)), owner.__name__) for owner in _owners(model)]
    try:
        yield
    finally:
        for owner, names, own_name in before:
            for name, value in vars(owner).items():
                if value is not names.get(name, _ABSENT) and _is_of(library, value):
                    _replaced.append((owner, name, names.get(name, _ABSENT)))
            if owner.__name__ != own_name:
                _replaced.append((owner, "__name__", own_name))


def put_back() -> None:
    """Undoes what was recorded, last first."""
    while _switched:
        _switched.pop()()
    while _replaced:
        owner, name, value = _replaced.pop()
        if value is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, value)


def put_back_later(undo: Callable[[], None]) -> None:
    """`undo` is called before the next run in this process."""
    _switched.append(undo)


def _owners(model: nn.Module) -> list[Any]:
    """Loaded modules of WHERE, the classes that the model is made of, and those beside them in its own module."""
    modules = [
        module
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and any(name == root or name.startswith(f"{root}.") for root in WHERE)
    ]
    classes = {cls for part in model.modules() for cls in type(part).__mro__ if cls is not object}
    beside = vars(sys.modules[type(model).__module__]).values()
    classes |= {one for one in beside if isinstance(one, type) and one.__module__ == type(model).__module__}
    return [*modules, *classes]


def _is_of(library: str, value: Any) -> bool:
    return str(getattr(value, "__module__", "")).split(".")[0] == library
