"""Which jobs a sweep looks at before it begins any: each word once, and no more than it has time for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig

from dumbo.errors import ConfigError
from dumbo.sweep import sweeper


class Looking:
    """In the place of Hydra's loader and of `check`: a job is faulty when one of its words is bad."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def load_sweep_config(self, cfg: Any, words: list[str]) -> Any:
        self.seen.append(words)
        return words

    def check(self, cfg: Any, choices: Any, config_dirs: Any) -> None:
        if any("bad" in word for word in cfg):
            raise ConfigError([f"{cfg} is bad"])


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> Looking:
    found = Looking()
    monkeypatch.setattr(sweeper, "check", found.check)
    monkeypatch.setattr(sweeper, "composed_of", lambda job: SimpleNamespace(cfg=job, choices={}))
    monkeypatch.setattr(HydraConfig, "instance", lambda: SimpleNamespace(cfg=None, set_config=lambda job: None))
    return found


def test_each_word_is_in_one_of_those_that_are_looked_at(looking: Looking) -> None:
    jobs = [["model=tiny", f"lr={lr}", f"seed={seed}"] for lr in ("1", "bad", "3") for seed in range(4)]
    faults: Any = sweeper.faults_before(jobs, None, looking)  # type: ignore[arg-type]
    assert looking.seen == [jobs[n] for n in (0, 1, 2, 3, 4, 8)]
    assert list(faults) == [4]


def test_none_that_can_run_is_the_first_ones_fault(looking: Looking) -> None:
    jobs = [["lr=bad", "seed=1"], ["lr=bad", "seed=2"]]
    with pytest.raises(ConfigError, match="seed=1"):
        sweeper.faults_before(jobs, None, looking)  # type: ignore[arg-type]
    assert list(sweeper.faults_before(jobs, None, looking, here=False)) == [0, 1]  # type: ignore[arg-type]


def test_no_more_than_there_is_time_for(looking: Looking) -> None:
    jobs = [[f"seed={seed}"] for seed in range(sweeper.LOOKED_AT + 50)]
    assert sweeper.faults_before(jobs, None, looking) == {}  # type: ignore[arg-type]
    assert len(looking.seen) == sweeper.LOOKED_AT
