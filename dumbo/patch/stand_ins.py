"""What a model does around its layers and its output head, without them: stand-ins take their place.

For `chunked_loss.py`, which compares a model's loss with that of a head alone before anything is loaded: caps, norms and
masks between layers and head are the model's own then, and nothing else takes time or memory.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPast


def with_stand_ins(base: Any, scale: float) -> Any:
    """A model whose layers return random numbers, and whose head is narrow and has all of the vocabulary.

    All on the CPU in float32, further modules with random weights. The model itself, which may be a skeleton, stays as
    it is.

    Args:
        base: a transformers model; `base_model` and the output head are children of it.
        scale: about the standard deviation of the logits.
    """
    generator = torch.Generator().manual_seed(0)
    head, layers = base.get_output_embeddings(), base.base_model
    rows, width = head.weight.shape
    found: dict[str, Any] = {}
    for name, child in base.named_children():
        if child is layers:
            found[name] = _StandInLayers(width, scale)
        elif child is head:
            found[name] = _StandInHead(rows, width, generator)
        else:
            found[name] = copy.deepcopy(child).to_empty(device="cpu").float()
            for tensor in (*found[name].parameters(), *found[name].buffers()):
                if tensor.is_floating_point():
                    tensor.data.normal_(generator=generator)
    probe = copy.copy(base)
    probe._modules = found
    heads = [child for child in found.values() if isinstance(child, _StandInHead)]
    assert heads, "its output head is inside of another module"
    probe.get_output_embeddings = lambda: heads[0]  # transformers' own looks for input embeddings on its way
    assert isinstance(probe.base_model, _StandInLayers), "its layers are inside of another module"
    return probe


class _StandInLayers(torch.nn.Module):
    """A decoder, or a module around one, that returns the same random hidden states whenever it is called."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.width, self.scale = width, scale

    @property
    def decoder(self) -> _StandInLayers:
        """What is asked for by models that go around their `base_model` (OPT)."""
        return self

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        shape = (*input_ids.shape, self.width)
        return _Outputs(last_hidden_state=self.scale * torch.randn(shape, generator=torch.Generator().manual_seed(1)))


class _StandInHead(torch.nn.Module):
    """Looks at the first few numbers of a hidden state only."""

    def __init__(self, rows: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.narrow = min(width, 8)
        self.weight = torch.nn.Parameter(torch.randn(rows, self.narrow, generator=generator) / self.narrow**0.5)
        self.bias = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.linear(hidden[..., : self.narrow], self.weight)


class _Outputs(BaseModelOutputWithPast):
    """What is not there (caches, routers) is None, as it is in training."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None
