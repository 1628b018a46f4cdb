"""Names of a model's modules, and errors that name the right ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError
from dumbo.suggest import did_you_mean

if TYPE_CHECKING:
    from torch import nn


def last_parts(names: Iterable[str]) -> list[str]:
    """The distinct last parts of dotted names that are no numbers, in order: q_proj, k_proj, …"""
    return list(dict.fromkeys(part for name in names if not (part := name.split(".")[-1]).isdigit()))


def matches(full_name: str, wanted: str) -> bool:
    """Whether a module's full name ends in `wanted`, part by part (as peft matches)."""
    return full_name == wanted or full_name.endswith(f".{wanted}")


def linear_names(model: nn.Module) -> list[str]:
    """Full names of the linear layers (Conv1D of GPT-2 among them)."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def embedding_names(model: nn.Module) -> list[str]:
    """Full names of the embeddings."""
    from torch import nn

    return [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]


def require_modules(names: Iterable[str], wanted: Iterable[str], what: str, key: str) -> None:
    """Raises a UserError for each wanted name that matches none of a model's names.

    Args:
        names: full names there are.
        wanted: names asked for.
        what: what they should be ("linear layer").
        key: the config key, for the error.
    """
    names = list(names)
    for name in wanted:
        if not any(matches(full, name) for full in names):
            parts = last_parts(names)
            raise UserError(
                f"{key}: no {what} is called '{name}'.{did_you_mean(name, parts)}\n  there are: {', '.join(parts[:30])}"
            )


def keep_cache(model: Any, wanted: bool) -> None:
    """Whether passes keep keys and values where nobody says; a model that also sees or hears has a config of its own for text."""
    config = base_of(model).config
    config.use_cache = config.get_text_config().use_cache = wanted


def base_of(model: Any) -> Any:
    """The transformers model inside peft's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
