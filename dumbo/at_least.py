"""The commonest check of an option."""

from __future__ import annotations

from dumbo.errors import UserError


def at_least(name: str, value: float, least: float) -> None:
    """Raises UserError where an option is too small."""
    if value < least:
        raise UserError(f"{name} must be at least {least:g}, got {value:g}.")
