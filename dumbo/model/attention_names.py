"""What `model.attn_implementation` may be: the attentions of transformers itself.

Names with a slash, by which transformers fetches a kernel from the hub and runs it, are none of them: no YAML brings
code along.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Literal

AttentionName = Literal["auto", "sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"]
PACKAGES = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}
"""Module and package that a name needs."""


def attention_problems(name: str) -> Iterable[str]:
    """A package that an attention needs and that is not installed."""
    module, package = PACKAGES.get(name, (None, None))
    if module is not None and importlib.util.find_spec(module) is None:
        yield (
            f"attn_implementation is {name}, and its package {package} is not installed.\n"
            "  Install it, or leave model.attn_implementation out: dumbo chooses with packing."
        )
