"""Hydra sweeper `optuna`: a search, in which Optuna chooses the values of each trial (pip install 'dumbo[search]').

Hydra imports this file at each start: nothing of Optuna is imported here. What is searched is said by the sweep's words and
by hydra.sweeper.params; how, by sweep.search.*.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="optuna",
    node={"_target_": "hydra_plugins.dumbo_optuna_sweeper.OptunaSweeper", "params": {}},
    provider="dumbo",
)


class OptunaSweeper(Sweeper):
    """Hands the words to `dumbo.sweep.search`.

    Args:
        params: key -> what it is swept over, for YAML files; words of the command line win.
    """

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        self.params = dict(params or {})

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.config, self.context = config, hydra_context

    def sweep(self, arguments: list[str]) -> None:
        from dumbo.sweep.runner import Runner
        from dumbo.sweep.search import search

        assert self.config is not None
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        search(Runner.current(), words, self.config, self.context.config_loader)
