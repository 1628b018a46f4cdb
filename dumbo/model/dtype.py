"""In which number format weights are kept and the arithmetic runs.

- `model.dtype` is how weights are kept. auto: float32 where they are trained (they are the optimizer's master
  weights); bfloat16 where they are frozen under adapters and the arithmetic is bf16 anyway.
- `trainer.precision` is the arithmetic: bf16 through autocast, or fp32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError
from dumbo.suggest import did_you_mean

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")


def torch_dtype(name: Any) -> torch.dtype:
    """The torch dtype called `name`; auto is float32. A torch dtype passes through.

    Raises:
        UserError: not one of DTYPES.
    """
    import torch

    if isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise UserError(
            f"model.dtype has no choice '{name}'.{did_you_mean(str(name), DTYPES)}\n  choices: {', '.join(DTYPES)}"
        )
    return torch.float32 if name == "auto" else getattr(torch, name)


def bf16_in_hardware() -> bool:
    """Whether the GPU here computes in bf16 natively (compute capability 8.0 and later)."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def resolved_precision(precision: str) -> str:
    """ "bf16" or "fp32" for `trainer.precision`.

    Raises:
        UserError: bf16 asked for on a GPU that has none.
    """
    import torch

    if precision == "auto":
        return "bf16" if bf16_in_hardware() else "fp32"
    if precision == "bf16" and torch.cuda.is_available() and not bf16_in_hardware():
        raise UserError(f"{torch.cuda.get_device_name()} has no bf16.\n  Write trainer.precision=fp32")
    return precision


def weights_dtype(model_dtype: str, precision: str, *, frozen: bool) -> torch.dtype:
    """How to keep the weights.

    Args:
        model_dtype: `model.dtype`.
        precision: "bf16" or "fp32", resolved.
        frozen: whether the base weights stay as they are (adapters train).
    """
    import torch

    if model_dtype != "auto":
        return torch_dtype(model_dtype)
    return torch.bfloat16 if frozen and precision == "bf16" else torch.float32
