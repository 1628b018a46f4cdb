"""How much half precision moves a loss: measured, on the model and the documents themselves, against float32.

Two ways of computing one number in bf16 (packed and alone, a kernel and the layers that it stands for) round at other
places. Each is off from the number without rounding by about as much, so the two are apart by sqrt(2) times that. A bound
from eps and the number of layers knows nothing of the model: for SmolLM2's 134 tokens of a first batch it allows 8% of the
loss, where the loss is 0.3% from that in float32; for the embedded default 3%, where it is 0.004%.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from dumbo.verify.proof import Tolerance, loss_tolerance

if TYPE_CHECKING:
    from dumbo.verify.unpatched import Document, OnDevice

HALF = (torch.bfloat16, torch.float16)
ERRORS = 4
"""Standard errors that are allowed: further off by chance once in 16,000 times, were errors normal."""
MEASURED = 4096
"""Tokens that are computed once more, in float32; the first document in any case."""


def error_of_mean(model: OnDevice, documents: Sequence[Document], smoothing: float) -> float | None:
    """By how much rounding in bf16 moves the mean loss over the trained tokens of all these documents: a standard error.

    Tokens err each by itself, and all of a document by what its first ones have in common: the larger of what both say.

    Args:
        documents: measured on the first of them, so many as have MEASURED tokens together.
        smoothing: of the labels.

    Returns:
        nats; None where this model cannot compute in float32 (an attention that is made for half precision alone).
    """
    chosen = list(documents[:1])
    for document in documents[1:]:
        if sum(len(ids) for ids, _ in [*chosen, document]) > MEASURED:
            break
        chosen.append(document)
    try:
        with in_float32(model.model), torch.no_grad():
            exact = [model.losses(*document, bf16=False, smoothing=smoothing).double() for document in chosen]
    except RuntimeError:  # of kernels for half precision, or of memory: said where the tolerance is
        return None
    with torch.no_grad():
        rounded = [model.losses(*document, bf16=True, smoothing=smoothing).double() for document in chosen]
    errors = [a - b for a, b in zip(rounded, exact, strict=True)]
    seen = sum(map(len, errors))
    if not seen:
        return None
    each = torch.cat(errors).square().sum()
    together = torch.stack([error.sum() for error in errors]).square().sum()
    of_seen = float(torch.maximum(each, together).sqrt()) / seen
    tokens = sum(int(trained[1:].sum()) for _, trained in documents)
    return of_seen * (seen / max(1, tokens)) ** 0.5


def of_mean_loss(
    dtype: torch.dtype, layers: int, tokens: int, loss: float, error: float | None, room: float = 1.0
) -> Tolerance:
    """How far a mean loss may be from itself, computed another way, in nats.

    Args:
        dtype: what products are computed in.
        tokens: over which the mean is.
        error: what `error_of_mean` measured; None: nothing is, and the bound from dtype and layers holds.
        room: times that bound.
    """
    size = max(1.0, abs(loss))
    if dtype not in HALF or error is None:
        bound = loss_tolerance(dtype, layers, tokens)
        return Tolerance(
            room * bound.value * size, f"{bound.source}{f' x {room:g}' * (room != 1)}{f' x {size:.3g}' * (size > 1)}"
        )
    summed = room * loss_tolerance(torch.float32, layers, tokens).value * size
    source = f"{ERRORS} x sqrt(2) x {error:.1e}, which is how far {str(dtype).removeprefix('torch.')} is from float32 on these tokens"
    return Tolerance(ERRORS * 2**0.5 * error + summed, source)


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Inside, each module computes with float32 copies of its weights, made when it is called and gone afterwards."""
    kept: dict[Any, dict[str, Any]] = {}

    def widen(module: torch.nn.Module, *arguments: Any) -> None:
        kept[module] = dict(module._parameters)
        for name, weight in kept[module].items():
            if weight is not None and weight.dtype in HALF:
                module._parameters[name] = weight.float()

    def narrow(module: torch.nn.Module, *arguments: Any) -> None:
        module._parameters.update(kept.pop(module))

    hooks = []
    try:
        for module in model.modules():
            if any(weight is not None and weight.dtype in HALF for weight in module._parameters.values()):
                hooks += [
                    module.register_forward_pre_hook(widen),
                    module.register_forward_hook(narrow, always_call=True),
                ]
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, parameters in kept.items():
            module._parameters.update(parameters)
