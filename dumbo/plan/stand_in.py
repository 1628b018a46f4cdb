"""The model of an experiment without its numbers: shapes, dtypes, patches; nothing is loaded, and nothing computed.

Pipeline: load_skeleton (meta device) -> dtype -> patches -> fake tensors on the device that will train.
Fake tensors know their device, so that torch chooses the kernels it would choose there.
https://docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dumbo.errors import UserError
from dumbo.interfaces import Stage
from dumbo.model.pretrained import resize_embeddings
from dumbo.patch import order
from dumbo.trainer.precision import dtype_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.check import Plugins


@dataclass
class StandIn:
    """A patched model on the meta device.

    Attributes:
        model: with its patches, but those of `beside`.
        beside: patches that are counted apart: name -> patch (compiling makes no sense of fake tensors).
        left_out: name -> why this machine does not run it.
    """

    model: PreTrainedModel
    beside: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> tuple[int, int]:
        """(all, those that train)."""
        every = list(self.model.parameters())
        return sum(p.numel() for p in every), sum(p.numel() for p in every if p.requires_grad)

    def bytes_of(self, trainable: bool | None = None) -> int:
        """Of the weights; True: of those that train, False: of the others."""
        return sum(
            p.numel() * p.element_size()
            for p in self.model.parameters()
            if trainable is None or p.requires_grad == trainable
        )


def stand_in(plugins: Plugins, tokenizer: PreTrainedTokenizerBase, patches: Mapping[str, Any] | None = None) -> StandIn:
    """Builds it.

    Args:
        patches: in order; None: those of the config.

    Raises:
        UserError: the model's loader has no skeleton; a patch refuses the model.
    """
    if not hasattr(plugins.model, "load_skeleton"):
        raise UserError(
            f"plan: {type(plugins.model).__name__} has no load_skeleton(tokenizer), the model on the meta device."
        )
    chosen = order.in_order(plugins.patches) if patches is None else dict(patches)
    reasons = {name: order.why_unavailable(name, patch) for name, patch in chosen.items()}
    usable = {name: patch for name, patch in chosen.items() if reasons[name] is None}
    skeleton = plugins.model.load_skeleton(tokenizer)
    order.check_skeleton(usable, _Loaded(skeleton), tokenizer)
    with torch.device("meta"):
        resize_embeddings(skeleton, tokenizer)
    model: Any = skeleton.to(dtype_for(plugins, usable))
    found = StandIn(model, left_out={name: reason for name, reason in reasons.items() if reason is not None})
    for name, patch in usable.items():
        if patch.stage == Stage.COMPILE:
            found.beside[name] = patch
        else:
            found.model = _written(patch).apply(found.model)
    return found


@dataclass(frozen=True)
class _Loaded:
    """A loader that has made its skeleton already."""

    skeleton: Any

    def load_skeleton(self, tokenizer: Any) -> Any:
        return self.skeleton


def _written(patch: Any) -> Any:
    """A patch that compiles a part of itself, without that."""
    compiles = is_dataclass(patch) and getattr(patch, "compiled", False) is True
    return replace(patch, compiled=False) if compiles and not isinstance(patch, type) else patch


def make_fake(model: torch.nn.Module, device: torch.device) -> None:
    """Gives a model on the meta device fake tensors on `device`, tied ones tied. Called within a FakeTensorMode."""
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # the old one is kept: its id must not come again

    def fake(old: torch.Tensor) -> torch.Tensor:
        if id(old) not in made:
            new = torch.empty(old.shape, dtype=old.dtype, device=device)
            if isinstance(old, torch.nn.Parameter):
                new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
            made[id(old)] = (old, new)
        return made[id(old)][1]

    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                if old is not None:
                    table[name] = fake(old)  # type: ignore[assignment]


def fake_batch(mode: FakeTensorMode, batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A micro batch of `collate.py` as fake tensors on `device`. What reads its numbers is told them before."""
    with mode:
        return {
            name: torch.empty(value.shape, dtype=value.dtype, device=device)
            if isinstance(value, torch.Tensor)
            else value
            for name, value in batch.items()
        }
