"""Whether each patch changed anything: the model is looked at before and after it, in a process where none has run.

Looked at are parameters (names, dtypes, sums, whether they train), modules (classes, methods, hooks, switches), the
config, and the functions of the module that the model's class is from (kernels are put there).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

from dumbo.patch.applied import patched_model
from dumbo.patch.modules import base_of
from dumbo.trainer import flash
from dumbo.trainer.attention import KERNEL

if TYPE_CHECKING:
    from dumbo.verify.subject import Subject


class Looks:
    """Watches patches being applied.

    Attributes:
        untaken: names of those after which all is as before.
    """

    def __init__(self) -> None:
        self.untaken: list[str] = []
        self._before: Any = None

    def loaded(self, model: Any) -> None:
        self._before = _picture(model)

    def patched(self, name: str, patch: Any, model: Any) -> None:
        now = _picture(model)
        if now == self._before:
            self.untaken.append(name)
        self._before = now


def untaken(subject: Subject) -> list[str]:
    """Names of the patches that change nothing."""
    looks = Looks()
    patched_model(subject.plugins, subject.patches, subject.tokenizer, watch=looks)
    return looks.untaken


def _picture(model: Any) -> tuple[Any, ...]:
    base = base_of(model)
    parameters = [(name, p.dtype, p.requires_grad, float(p.detach().sum())) for name, p in model.named_parameters()]
    modules = [(name, _picture_of(module)) for name, module in model.named_modules()]
    place = vars(sys.modules[type(base).__module__])
    functions = {name: id(value) for name, value in place.items() if callable(value)}
    replaced = id(torch.nn.functional.cross_entropy), flash.current()
    return parameters, modules, functions, replaced, str(base.config.to_dict())


def _picture_of(module: torch.nn.Module) -> tuple[Any, ...]:
    own = vars(module)
    methods = sorted((name, id(getattr(value, "__func__", value))) for name, value in own.items() if callable(value))
    switches = (own.get("gradient_checkpointing"), own.get(KERNEL), module._compiled_call_impl is not None)
    hooks = (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
    return type(module), id(type(module).forward), methods, switches, hooks
