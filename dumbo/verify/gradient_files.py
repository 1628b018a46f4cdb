"""A model's gradients in a file, and a patched model's held against them tensor by tensor.

Of a large matrix the rows with the largest gradients are kept, and its norm; small tensors are kept whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dumbo.patch.modules import base_of
from dumbo.verify.proof import larger

WHOLE = 1 << 20
"""Numbers up to which a tensor is kept whole; of a larger one, rows with so many."""
NEGLIGIBLE = 1e-4
"""A gradient smaller than this share of the largest one is compared with that share: it is rounding alone."""
ROWS = "#rows"


@dataclass(frozen=True)
class Kept:
    """One tensor's gradient.

    Attributes:
        values: the whole, or some rows of it, in float32.
        rows: which rows; None: all.
        norm: of the whole.
    """

    values: torch.Tensor
    rows: torch.Tensor | None
    norm: float

    def of(self, gradient: torch.Tensor) -> torch.Tensor:
        """The same part of another gradient."""
        part = gradient if self.rows is None else gradient.index_select(0, self.rows.to(gradient.device))
        return part.float().cpu()


def written(gradients: Mapping[str, torch.Tensor], file: Path) -> dict[str, float]:
    """Writes gradients by name; returns the norm of each."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    norms = {}
    for name, gradient in gradients.items():
        norms[name] = _norm(gradient)
        if gradient.numel() > WHOLE and gradient.dim() > 1:
            amount = max(1, WHOLE // gradient[0].numel())
            sizes = gradient.flatten(1).float().square().sum(1)
            rows = torch.topk(sizes, min(amount, len(sizes))).indices.sort().values
            tensors[name + ROWS] = rows.cpu()
            gradient = gradient.index_select(0, rows)
        tensors[name] = gradient.float().cpu().contiguous()
    save_file(tensors, file)
    return norms


def read(file: Path, norms: Mapping[str, float]) -> dict[str, Kept]:
    """What `written` wrote."""
    from safetensors.torch import load_file

    tensors = load_file(file)
    return {name: Kept(tensors[name], tensors.get(name + ROWS), norm) for name, norm in norms.items()}


def compared_gradients(model: Any, reference: Mapping[str, Kept]) -> dict[str, Any]:
    """Gradients of a model against a reference, each relative to its own norm.

    Returns:
        gradients: the largest relative difference, nan where one is not finite.
        worst: whose it is.
        trained, compared, derived: how many tensors train; how many of them have a counterpart, and how many of those are
            an adapter's.
    """
    base = base_of(model)
    least = NEGLIGIBLE * max((kept.norm for kept in reference.values()), default=0.0)
    worst, largest, trained, counted, derived = "none", 0.0, 0, 0, 0
    for name, parameter in base.named_parameters():
        if not parameter.requires_grad:
            continue
        trained += 1
        kept = reference.get(_unwrapped(name))
        if kept is not None and _no_longer_shared(base, parameter):
            continue
        if kept is None:
            found = _of_adapter(model, name, parameter, reference, least)
            derived += found is not None
        elif parameter.grad is None:
            found = 1.0 if kept.norm > least else 0.0
        else:
            found = _apart(kept.of(parameter.grad), kept.values, least, _norm(parameter.grad), kept.norm)
        if found is None:
            continue
        counted += 1
        if not math.isnan(largest) and larger(largest, found) != largest:
            worst, largest = name, found
    return {"gradients": largest, "worst": worst, "trained": trained, "compared": counted, "derived": derived}


def _no_longer_shared(base: Any, parameter: torch.nn.Parameter) -> bool:
    """Whether it is an embedding that the head shared (peft saves a copy of its own): the reference has the sum of both."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is None or not getattr(base.config.get_text_config(), "tie_word_embeddings", False):
        return False
    return head.weight is not parameter and any(parameter is own for own in embedding.parameters())


def _unwrapped(name: str) -> str:
    """A parameter's name in the model that nothing is wrapped around."""
    plain = name.replace("_orig_mod.", "")
    return plain.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")


def _of_adapter(
    model: Any, name: str, parameter: torch.nn.Parameter, reference: Mapping[str, Kept], least: float
) -> float | None:
    """An adapter's gradient against what follows from its layer's; None: it has no counterpart (DoRA's magnitudes)."""
    part = next((part for part in (".lora_A.default.", ".lora_B.default.") if part in name), None)
    if part is None:
        return None
    layer = name.partition(part)[0]
    module: Any = base_of(model).get_submodule(layer)
    down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
    kept = reference.get(_unwrapped(f"{layer}.weight"))
    transposed = getattr(module, "fan_in_fan_out", False)  # GPT-2's layers hold (in, out)
    if kept is None or (transposed and kept.rows is not None):
        return None
    if "lora_A" in part:
        if bool((up != 0).any()):
            return None
        return 0.0 if parameter.grad is None or not bool((parameter.grad != 0).any()) else torch.inf
    weights = kept.values.T if transposed else kept.values
    wanted = _scale(model) * weights @ down.detach().float().cpu().T
    if parameter.grad is None:
        return torch.inf
    got = kept.of(parameter.grad)
    return _apart(got, wanted, least * float(wanted.norm()) / max(kept.norm, 1e-30), _norm(got), float(wanted.norm()))


def _scale(model: Any) -> float:
    """By which an update is multiplied, as the adapter's config says (each layer has its own copy, which may be wrong)."""
    config = model.peft_config["default"]
    return float(config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r))


def _apart(got: torch.Tensor, wanted: torch.Tensor, least: float, norm: float, wanted_norm: float) -> float:
    """The distance of two gradients (of the part that is known), or of their norms, relative to the norm."""
    size = max(wanted_norm, least, 1e-30)
    return larger(float((got - wanted).double().norm()) / size, abs(norm - wanted_norm) / size)


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32))
