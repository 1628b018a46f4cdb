"""Which of Hydra's sweepers makes a sweep's jobs, and what it can do: `basic` (all combinations) or `optuna` (a search)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from dumbo.check import check
from dumbo.compose import composed_of
from dumbo.errors import ConfigError, UserError
from dumbo.hydra_node import key_of
from dumbo.outputs.places import short, typed
from dumbo.sweep.folder import read_sweep

SEARCH = "optuna"
LOOKED_AT = 100
"""Jobs that are checked before the first one runs, at most: under 0.1 s each (150 took 12.0 s on two busy cores)."""


def sweeper_of(cfg: DictConfig, words: Sequence[str], launcher: str, ours: Sequence[str]) -> str:
    """The sweeper's name, once it is known to be able to do what was typed.

    Args:
        cfg: with `hydra` in it.
        words: of the sweep.
        launcher: the one that was chosen; ours: those that run jobs in the pool.

    Raises:
        UserError: it cannot.
    """
    name = str(cfg.hydra.runtime.choices["hydra/sweeper"])
    if name == SEARCH:
        if importlib.util.find_spec("optuna") is None:
            raise UserError("hydra/sweeper=optuna: Optuna is not installed.\n  pip install 'dumbo[search]'")
        if launcher not in ours:
            raise UserError(
                f"hydra/launcher={launcher}: a search starts its trials itself, when a slot is free.\n"
                "  Write hydra/launcher=process (one at a time) or hydra/launcher=gpu_pool (several)."
            )
    elif name == "basic" and (word := _interval([*words, *_params(cfg)])):
        raise UserError(
            f"{word}: there is no end of values between two numbers, and a sweep runs all of them.\n"
            f"  A search chooses some: python -m dumbo -m hydra/sweeper=optuna {_quoted(word)}\n"
            f"  or write them: {key_of(word)}=a,b,c or {key_of(word)}=range(FROM,UP_TO,STEP)"
        )
    return name


def require_same(folder: Path, sweeper: str) -> None:
    """Raises a UserError when a sweep's folder is another sweeper's."""
    before = str(read_sweep(folder).get("sweeper", "basic"))
    if SEARCH in (before, sweeper) and before != sweeper:
        raise UserError(
            f"sweep_dir: {short(folder)} is a sweep of hydra/sweeper={before}, not of hydra/sweeper={sweeper}.\n"
            f"  Write another one: {typed('sweep_dir', folder.with_name(f'{folder.name}-2'))}"
        )


def faults_before(
    jobs: Sequence[Sequence[str]], cfg: DictConfig, loader: Any, config_dirs: Sequence[Path] = (), *, here: bool = True
) -> dict[int, ConfigError]:
    """Composes and checks some jobs before any of them is begun: so many that each word is in one, LOOKED_AT at most.

    Args:
        jobs: words of each.
        cfg: composed from the words that are not swept, `hydra` in it; loader: Hydra's.
        here: they run on this machine; what another one says of them may differ.

    Returns:
        which of them are going to fail, and why; others that share their words may too.

    Raises:
        UserError: one of them does not compose, or every one has faults here.
    """
    found: dict[int, ConfigError] = {}
    seen: set[str] = set()
    looked_at, before = 0, HydraConfig.instance().cfg
    try:
        for number, words in enumerate(jobs):
            if seen.issuperset(words) and number:
                continue
            if looked_at == LOOKED_AT:
                break
            seen.update(words)
            looked_at += 1
            job = loader.load_sweep_config(cfg, list(words))
            HydraConfig.instance().set_config(job)
            composed = composed_of(job)
            try:
                check(composed.cfg, composed.choices, config_dirs)
            except ConfigError as error:
                found[number] = error
    finally:
        HydraConfig.instance().cfg = before
    if here and found and len(found) == looked_at:
        raise next(iter(found.values()))
    return found


def _params(cfg: DictConfig) -> list[str]:
    sweeper: Any = OmegaConf.to_container(cfg.hydra.sweeper, resolve=False)
    params = sweeper.get("params") if isinstance(sweeper, dict) else None
    return [f"{key}={value}" for key, value in (params or {}).items()]


def _interval(words: Sequence[str]) -> str | None:
    parser = OverridesParser.create()
    for word in words:
        try:
            if isinstance(parser.parse_override(word).value(), IntervalSweep):
                return word
        except HydraException:  # refuse.py says it
            continue
    return None


def _quoted(word: str) -> str:
    """As a shell takes it."""
    return f"'{word}'" if "(" in word else word
