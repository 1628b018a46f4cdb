"""Which flash attention computes torch's variable-length attention: torch's own, or FlashAttention 3 or 4 where installed.

torch has a switch for the whole process; the packages register no kernels by themselves. With it, torch's
scaled_dot_product_attention takes the other kernels too, where it would have taken flash attention.
https://docs.pytorch.org/docs/stable/generated/torch.nn.attention.activate_flash_attention_impl.html
"""

from __future__ import annotations

import importlib
from typing import Literal

from torch.nn import attention

from dumbo.errors import UserError

Name = Literal["FA3", "FA4"]
PACKAGES: dict[Name, str] = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute.interface"}
"""Name of an implementation -> the module that torch takes it from."""


def why_not(name: Name) -> str | None:
    """Why this torch cannot switch to an implementation here."""
    if name not in getattr(attention, "list_flash_attention_impls", list)():
        return f"this torch cannot switch to {name}"
    try:
        importlib.import_module(PACKAGES[name])
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # not there, or built for another torch
        return f"{name} is not usable: {type(error).__name__}: {error}".splitlines()[0]
    return None


def current() -> str:
    """The one in use."""
    ask = getattr(attention, "current_flash_attention_impl", None)
    return (ask() if ask is not None else None) or "torch's own"


def switch(name: str) -> None:
    """To FA3 or FA4, for this process.

    Raises:
        UserError: the package does not fit this torch or this GPU.
    """
    try:
        attention.activate_flash_attention_impl(name)
    except Exception as error:
        raise UserError(
            f"patch.varlen.flash={name}: torch cannot switch to it ({type(error).__name__}: {error}).\n"
            "  Install a release that fits this torch, or write patch.varlen.flash=torch"
        ) from error


def switch_back() -> None:
    """To torch's own; nothing where that is in use."""
    if current() in PACKAGES:
        attention.restore_flash_attention_impl()
