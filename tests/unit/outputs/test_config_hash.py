"""Two configs are one experiment when their numbers are the same."""

from dumbo.outputs.config_hash import config_hash, differences, flattened

BASE = {
    "run_dir": None,
    "resume": None,
    "trainer": {"lr": 1e-4, "log_every": 1, "save_every": 100},
    "tracker": {},
    "model": {"path": "a"},
}


def test_flattened() -> None:
    assert flattened({"a": {"b": {"c": 1}, "d": {}}, "e": [1, 2]}) == {"a.b.c": 1, "a.d": {}, "e": [1, 2]}


def test_what_changes_no_number_changes_no_hash() -> None:
    other = {
        **BASE,
        "run_dir": "x",
        "resume": "auto",
        "tracker": {"wandb": {"project": "p"}},
        "trainer": {"lr": 1e-4, "log_every": 9, "save_every": 1},
    }
    assert config_hash(other) == config_hash(BASE)
    assert differences(BASE, other) == []


def test_what_changes_a_number_does() -> None:
    other = {**BASE, "trainer": {**BASE["trainer"], "lr": 3e-4}, "patch": {"lora": {"rank": 8}}}
    assert config_hash(other) != config_hash(BASE)
    assert differences(BASE, other) == ["trainer.lr: 0.0001 -> 0.0003", "patch.lora.rank: (absent) -> 8"]
