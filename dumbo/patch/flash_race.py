"""Whether an installed FlashAttention 3 or 4 is faster than our kernels, and as right: measured before the model is loaded.

Called by `auto.py` where tiles are to be added. On this GPU, in bf16, with the model's heads, a pack of the data's own
documents goes forward and backward through both, and outputs and gradients are compared. Takes part of a second, and what
compiling the kernels takes, which training needs anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dumbo.patch.attention_layers import attention_layers
from dumbo.patch.modules import base_of
from dumbo.trainer import flash, long_documents

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 16_384
"""Of the pack."""
SAVES = 0.03
"""So much less time, or more, makes another kernel the faster one."""
APART = 2e-2
"""Relative distance of norms between two kernels in bf16 (8 bits)."""
ROUNDS = 5


@dataclass(frozen=True)
class Raced:
    """What came of one implementation.

    Attributes:
        ms: forward and backward through one layer of each kind, in milliseconds; None: it failed, or is not right.
        ours_ms: the same of tiles.
        said: in words.
    """

    name: flash.Name
    ms: float | None
    ours_ms: float
    said: str

    @property
    def faster(self) -> bool:
        return self.ms is not None and self.ms <= (1 - SAVES) * self.ours_ms


@dataclass(frozen=True)
class _Heads:
    """What layers of a kind attend with."""

    heads: int
    shared: int
    width: int
    window: int | None


def raced(skeleton: PreTrainedModel, lengths: NDArray[np.integer[Any]]) -> list[Raced]:
    """Every installed implementation beside tiles; none installed: empty, and nothing is computed.

    Args:
        skeleton: the model, whose weights need not be there.
        lengths: (documents,) tokens of the documents that are trained on.
    """
    there = [name for name in flash.PACKAGES if flash.why_not(name) is None]
    if not there:
        return []
    kinds = _kinds(skeleton)
    bounds = _bounds(lengths)
    ours = [_measured(_tiles, heads, bounds) for heads in kinds]
    ours_ms = sum(ms * layers for (ms, _), layers in zip(ours, kinds.values(), strict=True))
    return [_one(name, kinds, bounds, [found for _, found in ours], ours_ms) for name in there]


def _one(name: flash.Name, kinds: Counter[_Heads], bounds: list[int], wanted: list[Any], ours_ms: float) -> Raced:
    try:
        flash.switch(name)
        theirs = [_measured(_varlen, heads, bounds) for heads in kinds]
    except Exception as error:  # a package of its own: whatever it raises is said, and it is not used
        return Raced(name, None, ours_ms, f"{name} failed: {type(error).__name__}: {error}".splitlines()[0])
    finally:
        flash.switch_back()
    apart = max(_apart(one, other) for (_, one), other in zip(theirs, wanted, strict=True))
    if not apart <= APART:
        return Raced(name, None, ours_ms, f"{name}'s numbers are {apart:.1g} from those of tiles")
    ms = sum(ms * layers for (ms, _), layers in zip(theirs, kinds.values(), strict=True))
    said = f"{name} takes {ms:.2f} ms for {sum(kinds.values())} layers on {bounds[-1]:,} tokens, tiles {ours_ms:.2f}"
    return Raced(name, ms, ours_ms, said)


def _kinds(skeleton: PreTrainedModel) -> Counter[_Heads]:
    """Kinds of layers, and how many there are of each."""
    config = base_of(skeleton).config.get_text_config()
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    layers = attention_layers(skeleton)
    return Counter(_Heads(heads, shared, layer.head_dim, getattr(layer, "sliding_window", None)) for layer in layers)


def _bounds(lengths: NDArray[np.integer[Any]]) -> list[int]:
    """Where documents of a pack begin, drawn from all, and its end; the last one is cut."""
    drawn = np.random.default_rng(0).choice(lengths, min(len(lengths), TOKENS))
    ends = np.cumsum(np.resize(drawn, -(-TOKENS // max(1, int(drawn.min())))))
    return [0, *ends[ends < TOKENS].tolist(), TOKENS]


def _measured(
    attend: Callable[..., torch.Tensor], heads: _Heads, bounds: Sequence[int]
) -> tuple[float, list[torch.Tensor]]:
    """Milliseconds of forward and backward, the least of some rounds; the output and the gradients."""
    device = torch.device("cuda", torch.cuda.current_device())
    numbers = torch.Generator(device).manual_seed(0)
    counts = (heads.heads, heads.shared, heads.shared)
    leaves = [
        torch.randn(
            1, n, bounds[-1], heads.width, device=device, dtype=torch.bfloat16, generator=numbers
        ).requires_grad_()
        for n in counts
    ]
    grad = torch.randn(1, bounds[-1], heads.heads, heads.width, device=device, dtype=torch.bfloat16, generator=numbers)
    here = torch.tensor(bounds, dtype=torch.int32)
    there = here.to(device)
    long_documents.tell({"cu_seq_lens_q": here}, {"cu_seq_lens_q": there})
    longest = int(torch.diff(here).max())
    took = []
    for _ in range(ROUNDS):
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        out = attend(*leaves, there, longest, heads.window)
        gradients = torch.autograd.grad(out, leaves, grad)
        ended.record()
        torch.cuda.synchronize()
        took.append(began.elapsed_time(ended))
    return min(took), [out.detach(), *gradients]


def _tiles(q: Any, k: Any, v: Any, bounds: Any, longest: int, window: int | None) -> torch.Tensor:
    from dumbo.trainer import tiles

    return tiles.attend(q, k, v, bounds, window, None)


def _varlen(q: Any, k: Any, v: Any, bounds: Any, longest: int, window: int | None) -> torch.Tensor:
    from dumbo.trainer import varlen

    return varlen.attend(q, k, v, bounds, longest, window, None)


def _apart(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """The largest distance, relative to the norm of what is wanted."""
    pairs = zip(found, wanted, strict=True)
    return max(float((one - other).float().norm() / other.float().norm()) for one, other in pairs)
