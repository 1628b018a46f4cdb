"""The model of an experiment without its numbers: shapes, dtypes, patches; nothing is loaded, and nothing computed.

Pipeline: load_skeleton (meta device) -> dtype -> patches -> fake tensors on the device that will train.
Fake tensors know their device, so that torch chooses the kernels it would choose there.
https://docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dumbo.errors import UserError
from dumbo.model.pretrained import resize_embeddings
from dumbo.outputs.console import Console
from dumbo.outputs.run_dir import RunDir
from dumbo.patch import auto, order
from dumbo.patch.chunked_loss import ChunkedLoss
from dumbo.patch.compile import Compile, decoder_layers
from dumbo.patch.compiled_call import below
from dumbo.patch.liger import Liger
from dumbo.plan.fused import fused_chunk_loss, keep_as_compiled
from dumbo.trainer.chunks import chunk_loss
from dumbo.trainer.precision import dtype_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.check import Plugins
    from dumbo.prepare.store import PreparedSplits

LIGERS_CHUNK = 1024
"""Tokens whose logits Liger's fused loss holds at once, about (it goes by the ratio of width and vocabulary)."""


@dataclass
class StandIn:
    """A patched model on the meta device.

    Attributes:
        model: with its patches; what is compiled keeps what it would keep compiled (`fused.py`).
        evidence: name of a patch -> what shows that it took.
        left_out: name -> why this machine does not run it.
    """

    model: PreTrainedModel
    evidence: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> tuple[int, int]:
        """(all, those that train)."""
        every = list(self.model.parameters())
        return sum(p.numel() for p in every), sum(p.numel() for p in every if p.requires_grad)


def chosen_patches(plugins: Plugins, tokenizer: Any, data: PreparedSplits) -> dict[str, Any]:
    """The patches of the config and those that `performance` is going to add, in order."""
    patches = order.in_order(plugins.patches)
    nowhere = RunDir(Path(), Console(io.StringIO()), 0.0, claimed=False)  # nothing is written
    return auto.added(plugins, patches, tokenizer, data, nowhere)


def stand_in(plugins: Plugins, tokenizer: PreTrainedTokenizerBase, patches: Mapping[str, Any]) -> StandIn:
    """Builds it.

    Args:
        patches: in order.

    Raises:
        UserError: the model's loader has no skeleton; a patch refuses the model.
    """
    if not hasattr(plugins.model, "load_skeleton"):
        raise UserError(
            f"plan: {type(plugins.model).__name__} has no load_skeleton(tokenizer), the model on the meta device."
        )
    reasons = {name: order.why_unavailable(name, patch) for name, patch in patches.items()}
    usable = {name: patch for name, patch in patches.items() if reasons[name] is None}
    skeleton = plugins.model.load_skeleton(tokenizer)
    order.check_skeleton(usable, _Loaded(skeleton), tokenizer)
    with torch.device("meta"):
        resize_embeddings(skeleton, tokenizer)
    model: Any = skeleton.to(dtype_for(plugins, usable))
    found = StandIn(model, left_out={name: reason for name, reason in reasons.items() if reason is not None})
    for name, patch in usable.items():
        found.model, found.evidence[name] = _rehearsed(patch, found.model)
    return found


def _rehearsed(patch: Any, model: Any) -> tuple[Any, str]:
    """A model with a patch, or with what takes its memory; and what shows that it took. Kernels need real tensors."""
    if isinstance(patch, Compile | Liger):
        torch.compiler.reset()  # as Compile does: graphs of another model would count against the limit of variants
        layers = decoder_layers(model) if isinstance(patch, Compile) or patch.swiglu else []
        for number, layer in enumerate(layers):
            keep_as_compiled(layer, partial(below, model, layers[number:]) if isinstance(patch, Compile) else None)
        if isinstance(patch, Liger) and patch.fused_linear_cross_entropy:
            model = _Chunks(chunk_size=LIGERS_CHUNK).apply(model)
        return model, "its kernels are predicted by what they keep"
    if isinstance(patch, ChunkedLoss) and (patch.compiled or patch.kernel):
        patch = _Chunks(chunk_size=patch.chunk_size, compiled=patch.compiled, kernel=patch.kernel)
    model = patch.apply(model)
    return model, order.evidence(patch, model)


@dataclass(frozen=True, kw_only=True)
class _Chunks(ChunkedLoss):
    """The patch with chunks that are not really compiled."""

    def _function(self) -> Any:
        return chunk_loss if Compile().unavailable() is not None else fused_chunk_loss


@dataclass(frozen=True)
class _Loaded:
    """A loader that has made its skeleton already."""

    skeleton: Any

    def load_skeleton(self, tokenizer: Any) -> Any:
        return self.skeleton


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
