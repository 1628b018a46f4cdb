"""What tests of the plan share: an experiment as its plugins, and its prepared data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

Experiment = tuple[Any, Any, Any]
QUICK = (
    "dataset.limit=200",
    "trainer.max_seq_len=128",
    "trainer.num_answers=0",
    "trainer.num_samples=0",
    "launch=single",
)


@pytest.fixture
def experiment() -> Callable[..., Experiment]:
    """Words -> (plugins, tokenizer, prepared data)."""

    def made(*words: str) -> Experiment:
        from dumbo.check import check
        from dumbo.command import parse
        from dumbo.compose import compose, prepare_hydra
        from dumbo.preview import prepared

        command = parse([*QUICK, *words])
        composed = compose([*prepare_hydra((), None), *command.overrides])
        plugins = check(composed.cfg, composed.choices)
        tokenizer, data = prepared(replace(plugins, preview=replace(plugins.preview, format="json")))
        return plugins, tokenizer, data

    return made
