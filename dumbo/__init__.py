"""Dumbo fine-tunes language models from plugins that Hydra composes.

    python -m dumbo model=smollm patch=[liger,lora] trainer.lr=1e-4

From Python: ``dumbo.run(["model=tiny", "trainer.max_steps=10"])`` returns the final metrics.
Importing this package is cheap: torch and transformers load only once a config has passed its checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "run"]


def run(overrides: Sequence[str] = (), *, config_dir: str | None = None) -> dict[str, Any]:
    """Trains one experiment in this process, as ``python -m dumbo train OVERRIDES`` would.

    Args:
        overrides: what one would type on the command line, one element an override.
        config_dir: a folder of one's own YAML files and plugin modules, as with ``--config-dir``.

    Returns:
        The final metrics of run.json: ``train_loss``, ``eval_loss``, ``exact_match``, ``tokens_per_s``, …

    Raises:
        dumbo.errors.UserError: for whatever the caller can mend; its text says what to write instead.
    """
    from dumbo.cli import run_from_python

    return run_from_python(list(overrides), config_dir)
