"""Numbers of a model's config that would fail late, inside torch."""

from __future__ import annotations

from dumbo.errors import UserError

LARGEST_SEED = 2**32 - 1
"""numpy takes no larger one."""


def require_sizes(**sizes: int | None) -> None:
    """Sizes are 1 or more; None is not judged.

    Raises:
        UserError: one is not, by its name.
    """
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise UserError(f"{name} must be at least 1, got {size}.")


def require_seed(seed: int, name: str = "seed") -> None:
    """A seed that torch and numpy both take.

    Raises:
        UserError: it is below 0 or above 2**32 - 1.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"{name} must be from 0 to {LARGEST_SEED}, got {seed}.")
