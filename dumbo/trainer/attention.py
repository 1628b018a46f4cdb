"""Attention that keeps packed documents apart, through torch's scaled_dot_product_attention.

transformers passes `cu_seq_lens_q`, where each document begins on the one token axis, down to the attention. Here
the documents are gathered into batches of like length (right-padded; causal attention never looks right), attended
to with the library's own SDPA function, and put back. No mask of T x T exists, sliding windows hold within each
document, and no document can see another. On a GPU in bf16 a kernel for such batches takes over: ours (`tiles.py`) in
modules that patch=[tile_attention] has marked, else torch's own (`varlen.py`). Without `cu_seq_lens_q` (generation,
padded batches) it is plain SDPA.

Registered with transformers' public AttentionInterface under the name `isolated`.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from dumbo.trainer import tiles, varlen

NAME = "isolated"
GROUPED = "dumbo_grouped"
"""Attribute of attention modules whose packs went group by group in bf16 or fp16: no kernel takes their heads."""
KERNEL = "dumbo_kernel"
"""Attribute of attention modules that a patch has marked: "tiles" (their packs go through `tiles.py`) or "varlen"."""
PADDING_ALLOWED = 1.15
"""Documents are batched together while padding adds no more than this factor."""
NOT_HONOURED = ("softcap", "s_aux", "position_bias")
"""What some models ask of their attention and SDPA would leave out."""


class CannotIsolate(ValueError):
    """The model's attention is more than softmax over keys: this implementation would compute something else."""


@dataclass(frozen=True)
class Plan:
    """How one batch of documents is gathered, for a token axis of T tokens and P >= T gathered places.

    Attributes:
        take: (P,) the token in each place; past a document's end its last one again.
        real: (T,) the place of each token.
        shapes: (documents, length) of each group; their products add up to P.
    """

    take: torch.Tensor
    real: torch.Tensor
    shapes: list[tuple[int, int]]


def idle(kernel: str, model: torch.nn.Module, layout: str, implementation: str, bf16: bool) -> str | None:
    """Why layers that are marked for a kernel never take it; None where they do, or where none is marked."""
    if not any(getattr(module, KERNEL, None) == kernel for module in model.modules()):
        return None
    if layout != "tokens" or implementation != NAME:
        return f"batches are {layout}, through {implementation} attention: it has nothing to do"
    weights = next(model.parameters()).dtype
    return (
        None
        if bf16 or weights in (torch.bfloat16, torch.float16)
        else "the arithmetic is fp32, and its kernels take bf16"
    )


_last: tuple[weakref.ref[torch.Tensor], Plan] | None = None


def register() -> None:
    """Makes `attn_implementation="isolated"` known to transformers. May be called any number of times."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
        """No mask for packs (none is given); the usual one where a padding mask is."""
        usual: Any = sdpa_mask
        return None if attention_mask is None else usual(*args, attention_mask=attention_mask, **kwargs)

    AttentionInterface.register(NAME, isolated_attention)
    AttentionMaskInterface.register(NAME, mask)


def isolated_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each document.

    Args:
        query: (1, heads, T, width); key and value: (1, key-value heads, T, width).
        cu_seq_lens_q: (documents + 1,) where each document begins; None: plain SDPA with `attention_mask`.
        sliding_window: tokens that a token may look back to, itself included.

    Returns:
        (1, T, heads, width).

    Raises:
        CannotIsolate: the model asks for something that SDPA does not do.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if strange := [name for name in NOT_HONOURED if kwargs.get(name) is not None]:
        raise CannotIsolate(f"{type(module).__name__} needs {', '.join(strange)}")
    if cu_seq_lens_q is None:
        if attention_mask is None and query.shape[2] == key.shape[2]:  # no mask was made: a window must not be lost
            attention_mask = _window(query.shape[2], sliding_window, query.device)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    dropout = float(kwargs.get("dropout") or 0.0)
    if getattr(module, KERNEL, None) == "tiles" and tiles.usable(query, value, dropout):
        return tiles.attend(query, key, value, cu_seq_lens_q, sliding_window, kwargs.get("scaling")), None
    if varlen.usable(query, value, dropout):
        longest = int(kwargs.get("max_length_q") or query.shape[2])
        return varlen.attend(query, key, value, cu_seq_lens_q, longest, sliding_window, kwargs.get("scaling")), None
    return _in_groups(module, query, key, value, cu_seq_lens_q, sliding_window, **kwargs), None


@torch.compiler.disable
def _in_groups(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_lens_q: torch.Tensor,
    sliding_window: int | None,
    **kwargs: Any,
) -> torch.Tensor:
    """`isolated_attention` group by group. Its shapes follow the documents' lengths: no compiled graph holds them."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    for name in ("cu_seq_lens_k", "max_length_q", "max_length_k", "position_ids", "use_cache"):
        kwargs.pop(name, None)
    if varlen.arithmetic(value) != torch.float32:
        setattr(module, GROUPED, True)
    plan = _plan(cu_seq_lens_q)
    gathered = [_Gather.apply(tensor[0].transpose(0, 1), plan.take, plan.real) for tensor in (query, key, value)]
    sizes = [documents * length for documents, length in plan.shapes]
    outputs = []
    for (documents, length), *parts in zip(plan.shapes, *(tensor.split(sizes) for tensor in gathered), strict=True):
        q, k, v = (part.unflatten(0, (documents, length)).transpose(1, 2) for part in parts)  # (n, heads, L, width)
        out, _ = sdpa_attention_forward(module, q, k, v, _window(length, sliding_window, q.device), **kwargs)
        outputs.append(out.flatten(0, 1))  # (n * L, heads, width)
    together = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    put_back: torch.Tensor = _PutBack.apply(together, plan.take, plan.real)
    return put_back[None]


class _Gather(torch.autograd.Function):
    """(T, ...) tokens -> (P, ...) places.

    Torch's own gradient adds up over all places. Only the real ones count: what comes after a document's end is
    never looked at, and its output is dropped, so that its gradient is zero. That makes it a gather too.
    """

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, take: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(real)
        return tokens.index_select(0, take)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (real,) = ctx.saved_tensors
        return grads[0].index_select(0, real), None, None


class _PutBack(torch.autograd.Function):
    """(P, ...) places -> (T, ...) tokens. The gradient of places past a document's end is zero."""

    @staticmethod
    def forward(ctx: Any, places: torch.Tensor, take: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(take, real)
        return places.index_select(0, real)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        take, real = ctx.saved_tensors
        if len(take) == len(real):
            return grads[0].index_select(0, take), None, None
        places = grads[0].new_zeros(len(take), *grads[0].shape[1:])
        return places.index_copy_(0, real, grads[0]), None, None


def _window(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """(1, 1, L, L) which pairs see each other under a sliding window; None where it reaches all of a document."""
    if window is None or length <= window:
        return None
    at = torch.arange(length, device=device)
    back = at[:, None] - at[None, :]
    return ((back >= 0) & (back < window))[None, None]


def _plan(cu_seq_lens: torch.Tensor) -> Plan:
    """The plan of a batch, made once and kept while the same tensor comes again (every layer, and recomputation)."""
    global _last
    if _last is not None and _last[0]() is cu_seq_lens:
        return _last[1]
    plan = plan_of(cu_seq_lens.tolist(), cu_seq_lens.device)
    _last = (weakref.ref(cu_seq_lens), plan)
    return plan


def remember(cu_seq_lens: torch.Tensor, plan: Plan) -> None:
    """The plan of a batch whose numbers cannot be read (`plan/rehearse.py`)."""
    global _last
    _last = (weakref.ref(cu_seq_lens), plan)


def plan_of(bounds: list[int], device: torch.device) -> Plan:
    """Documents of like length together, longest first.

    Args:
        bounds: where each document begins, and the end.
    """
    documents = sorted(((end - start, start) for start, end in pairwise(bounds) if end > start), reverse=True)
    groups: list[list[tuple[int, int]]] = []
    total = 0
    for length, start in documents:
        if not groups or groups[-1][0][0] * (len(groups[-1]) + 1) > PADDING_ALLOWED * (total + length):
            groups.append([])
            total = 0
        groups[-1].append((length, start))
        total += length
    take = np.concatenate([_places(group) for group in groups])
    first = np.concatenate([[True], take[1:] != take[:-1]])  # past its end a document repeats its last token
    real = np.empty(int(first.sum()), np.int64)
    real[take[first]] = np.flatnonzero(first)
    shapes = [(len(group), group[0][0]) for group in groups]
    return Plan(torch.from_numpy(take).to(device), torch.from_numpy(real).to(device), shapes)


def _places(group: list[tuple[int, int]]) -> np.ndarray:
    """(documents * longest,) the token in each place."""
    lengths, starts = np.array(group, np.int64).T
    return (starts[:, None] + np.minimum(np.arange(group[0][0])[None, :], lengths[:, None] - 1)).ravel()
