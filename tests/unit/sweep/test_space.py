"""Hydra's sweep syntax as what Optuna chooses from."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from lacking import needs
from omegaconf import OmegaConf

from dumbo.cli import main
from dumbo.errors import UserError
from dumbo.sweep.space import Space

needs("optuna", "pip install 'dumbo[search]'")
from optuna.distributions import (  # noqa: E402
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)

from dumbo.sweep.study import distribution  # noqa: E402

CFG = OmegaConf.create({"trainer": {"lr": 1e-4, "seed": 42, "packing": True, "max_steps": None}, "patch": {}})


def space(*words: str) -> Space:
    return Space.of(words, None, CFG)


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("trainer.lr=interval(1e-5,1e-3)", FloatDistribution(1e-5, 1e-3)),
        ("trainer.lr=interval(0,1)", FloatDistribution(0, 1)),
        ("trainer.lr=tag(log,interval(1e-5,1e-3))", FloatDistribution(1e-5, 1e-3, log=True)),
        ("trainer.seed=interval(1,9)", IntDistribution(1, 9)),
        ("trainer.seed=tag(log,interval(4,64))", IntDistribution(4, 64, log=True)),
        ("trainer.seed=interval(0.5,9)", FloatDistribution(0.5, 9)),
        ("trainer.packing=interval(0,1)", FloatDistribution(0, 1)),
        ("trainer.max_steps=interval(10,20)", FloatDistribution(10, 20)),
        ("trainer.max_steps=int(interval(10,20))", IntDistribution(10, 20)),
        ("trainer.max_steps=tag(log,int(interval(10,20)))", IntDistribution(10, 20, log=True)),
        ("trainer.seed=range(1,10,4)", IntDistribution(1, 9, step=4)),
        ("trainer.seed=range(1,9,4)", IntDistribution(1, 5, step=4)),
        ("trainer.seed=range(3)", IntDistribution(0, 2)),
        ("trainer.seed=range(10,1,-3)", IntDistribution(4, 10, step=3)),
        ("trainer.lr=range(0.1,0.4,0.1)", FloatDistribution(0.1, 0.3, step=0.1)),
        ("trainer.lr=1e-4,3e-4", CategoricalDistribution(("0.0001", "0.0003"))),
        ("trainer.lr=1e-4,abc,null", CategoricalDistribution(("0.0001", "abc", "null"))),
        ("trainer.lr=1,1,2", CategoricalDistribution(("1", "2"))),
        ("patch=[liger],[liger,lora]", CategoricalDistribution(("[liger]", "[liger,lora]"))),
        ("++trainer.extra.beta='a b',c", CategoricalDistribution(("'a b'", "c"))),
        ("trainer.seed=sort(3,1,2)", CategoricalDistribution(("1", "2", "3"))),
    ],
)
def test_distributions(word: str, wanted: Any) -> None:
    (one,) = space(word).dimensions
    assert distribution(one) == wanted
    check_distribution_compatibility(distribution(one), wanted)
    assert one.key == word.lstrip("+").partition("=")[0]


def test_the_values_of_a_range_are_those_that_a_grid_has() -> None:
    for word in ("trainer.seed=range(1,10,4)", "trainer.seed=range(10,1,-3)", "trainer.lr=range(0,1,0.25)"):
        (one,) = space(word).dimensions
        grid = OverridesParser.create().parse_override(word).sweep_string_iterator()
        assert sorted(map(repr, one.values)) == sorted(grid)
    (one,) = space("trainer.lr=range(0.1,0.4,0.1)").dimensions
    assert one.values == [0.1, 0.2, 0.3]
    assert one.word(0.1 + 2 * 0.1) == "trainer.lr=0.3"


def test_words_of_a_job_stand_where_they_were_typed_and_the_last_of_a_key_counts() -> None:
    found = space(
        "trainer.lr=interval(0,1)",
        "model=tiny",
        "trainer.seed=1,2",
        "trainer.packing=true,false",
        "trainer.packing=false",
    )
    own = found.own({"trainer.lr": 0.1 + 0.2, "trainer.seed": "2"})
    assert own == ["trainer.lr=0.30000000000000004", "trainer.seed=2"], "what runs is to the last bit what Optuna chose"
    assert found.job(own) == [own[0], "model=tiny", own[1], "trainer.packing=false"]
    assert found.short({"trainer.lr": 0.1 + 0.2, "trainer.seed": "2"}) == ["trainer.lr=0.3", "trainer.seed=2"]
    assert found.size is None
    counted = space("trainer.seed=1,2", "trainer.lr=range(0,1,0.25)")
    assert counted.size == len(list(counted.combinations())) == 8


def test_every_choice_and_both_ends_are_composed_beforehand() -> None:
    found = space("model=a,b,c", "trainer.lr=interval(0,3)", "trainer.seed=interval(1,9)").samples()
    assert found == [
        ["model=a", "trainer.lr=0.0", "trainer.seed=1"],
        ["model=b", "trainer.lr=3.0", "trainer.seed=9"],
        ["model=c", "trainer.lr=0.0", "trainer.seed=1"],
    ]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("trainer.lr=1e-3", "nothing to search over"),
        ("trainer.lr=tag(log,interval(0,1e-3))", "above 0"),
        ("trainer.lr=interval(1,1)", "to a higher one"),
        ("trainer.lr=interval(2,1)", "to a higher one"),
        ("trainer.lr=interval(1e-3,inf)", "to a higher one"),
        ("trainer.lr=tag(foo,interval(1,2))", "no tag 'foo'"),
        ("trainer.lr=tag(log,choice(1,2))", "goes with an interval"),
        ("trainer.seed=range(3,3)", "no value in it"),
        ("trainer.seed=range(3,9,-1)", "no value in it"),
        ("tracker.wandb.api_key=a,b", "named like a secret"),
        ("~trainer.seed=1,2", "taken away"),
    ],
)
def test_what_cannot_be_searched_over(word: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        space(word)
    assert "Write " in str(error.value) or "Set it" in str(error.value)


OPTUNA = "hydra/sweeper=optuna"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-m", "trainer.lr=interval(1e-4,1e-3)"], ["-m hydra/sweeper=optuna 'trainer.lr=interval(1e-4,1e-3)'", "range(FROM,UP_TO,STEP)"]),
        (["trainer.lr=interval(1e-4,1e-3)"], ["-m was not typed", "-m hydra/sweeper=optuna 'trainer.lr=interval(1e-4,1e-3)'"]),
        (["-m", OPTUNA], ["nothing to search over", "tag(log,interval("]),
        (["-m", OPTUNA, "trainer.lrr=interval(1,2)"], ["Did you mean trainer.lr?"]),
        (["-m", OPTUNA, "trainer.lr=abc,def"], ["trainer.lr must be a number, got the text 'abc'"]),
        (["-m", OPTUNA, "trainer.lr=1,2", "hydra/launcher=basic"], ["hydra/launcher=process", "hydra/launcher=gpu_pool"]),
        (["-m", OPTUNA, "trainer.lr=1,2", "sweep.search.num_trials=0"], ["sweep.search.num_trials must be at least 1"]),
        (["-m", OPTUNA, "trainer.lr=1,2", "sweep.search.sampler=tp"], ["sweep.search.sampler", "tpe"]),
        (["-m", OPTUNA, "trainer.lr=1,2", "sweep.search.num_trial=3"], ["Did you mean sweep.search.num_trials?"]),
        (["-m", "hydra/sweeper=optunaa", "trainer.lr=1,2"], ["Did you mean 'optuna'?"]),
    ],
)  # fmt: skip
def test_faults_are_told_before_any_trial(
    words: list[str], says: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "sweep_dir=sweep"]) == 2
    said = capsys.readouterr().err
    for text in says:
        assert text in said
    assert "Traceback" not in said


def test_without_optuna(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "optuna" else found(name, *more)
    )
    assert main(["-m", OPTUNA, "trainer.lr=1,2"]) == 2
    assert "pip install 'dumbo[search]'" in capsys.readouterr().err
