"""The dtype a run's weights are loaded in, from the model's, the trainer's and the patches' wishes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dumbo.model.dtype import resolved_precision, weights_dtype
from dumbo.patch.order import freezes_base

if TYPE_CHECKING:
    import torch

    from dumbo.check import Plugins


def dtype_for(plugins: Plugins, patches: Mapping[str, Any]) -> torch.dtype:
    """float32 for weights that train without other masters, bfloat16 for the others under bf16, unless `model.dtype` says."""
    precision = resolved_precision(getattr(plugins.trainer, "precision", "auto"))
    in_half = freezes_base(patches) or getattr(plugins.trainer, "master_weights", False)
    return weights_dtype(getattr(plugins.model, "dtype", "auto"), precision, frozen=in_half)
