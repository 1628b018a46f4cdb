"""What a job of a sweep is started with: its own words, where its plugins and YAML files are, and its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from dumbo.hydra_node import key_of
from dumbo.override_text import value_text
from dumbo.sweep.folder import is_of_the_jobs

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dumbo.command import Command


def job_words(command: Command, run: Path, overrides: Sequence[str]) -> list[str]:
    """The words of a process that runs a job, from its checkpoint if it has one.

    Args:
        run: the job's folder.
        overrides: the job's, as Hydra gives them.
    """
    words = [f"--config-dir={folder}" for folder in command.config_dirs]
    words += ["train", *([str(command.file)] if command.file else [])]
    words += [word for word in overrides if _is_own(word)]
    return [*words, *_places(command), f"run_dir={value_text(str(run))}", "resume=auto"]


def in_this_process(command: Command, cfg: DictConfig) -> dict[str, Any]:
    """Runs the job that Hydra has composed here; returns its metrics."""
    from dumbo.check import check
    from dumbo.compose import composed_of
    from dumbo.train import train

    composed = composed_of(cfg)
    composed.cfg.run_dir = HydraConfig.get().runtime.output_dir
    own = [str(word) for word in HydraConfig.get().overrides.task if _is_own(str(word))]
    command = replace(command, overrides=(*own, *_places(command)))
    return train(check(composed.cfg, composed.choices, command.config_dirs), composed, command)


def _places(command: Command) -> list[str]:
    """Where a job finds its YAML files: what was typed of it for the sweep."""
    return [word for word in command.overrides if key_of(word) == "hydra.searchpath"]


def _is_own(word: str) -> bool:
    """Whether an override belongs to the job rather than to the sweep."""
    return is_of_the_jobs(word) and not word.lstrip("+~").startswith(("hydra.", "hydra/", "from_file="))
