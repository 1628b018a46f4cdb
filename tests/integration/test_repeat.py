"""`repeat=RUN`: the run's recorded config wins over today's defaults, data and model must be the run's, losses are the same bitwise."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from dumbo import cli
from dumbo.check import check
from dumbo.command import parse
from dumbo.compose import Composed, compose, prepare_hydra
from dumbo.errors import UserError
from dumbo.outputs.console import Console
from dumbo.outputs.repeated import compare_losses, differing_versions, require_same_model
from dumbo.outputs.run_dir import RunDir
from dumbo.outputs.secrets import masked
from dumbo.outputs.surroundings import versions
from dumbo.recorded import composed_for, with_recorded_values
from dumbo.repeat import with_recorded

TINY = [
    "trainer.max_steps=4", "trainer.warmup_steps=0", "trainer.num_answers=0", "trainer.num_samples=0", "trainer.max_seq_len=64",
    "trainer.save_every=null", "trainer.eval_every=2", "model.hidden_size=32", "model.intermediate_size=32", "model.num_hidden_layers=1",
]  # fmt: skip
FILE = [*TINY, "dataset=files", "dataset.path=rows.jsonl", "dataset.eval_fraction=0.2", "verify.mode=off"]

Change = Callable[[dict[str, Any]], None]


def recorded(words: list[str], change: Change = lambda config: None, **facts: Any) -> Path:
    """A run's folder as it was left, its config.yaml changed: so it looks when a default has changed since."""
    composed = compose([*prepare_hydra([], None), *words])
    config = masked(composed.cfg)
    change(config)
    folder = Path("old")
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "overrides.yaml").write_text(yaml.safe_dump(words))
    (folder / "run.json").write_text(
        json.dumps({"status": "finished", "choices": composed.choices, "config_hash": "c0ffee", **facts})
    )
    return folder


def repeated(*words: str) -> Composed:
    command = with_recorded(parse(["repeat=old", *words]))
    composed = composed_for(command)
    check(composed.cfg, composed.choices, command.config_dirs)
    return composed


def values(composed: Composed, *keys: str) -> list[Any]:
    return [OmegaConf.select(composed.cfg, key) for key in keys]


def older(config: dict[str, Any]) -> None:
    """Defaults as they may have been once."""
    config["trainer"]["weight_decay"] = 0.05
    config["trainer"]["extra"]["adam_beta2"] = 0.95
    config["dataset"]["seed"] = 9
    config["patch"]["lora"]["alpha"] = 7.0


def test_a_changed_default_does_not_change_what_is_repeated() -> None:
    recorded(["patch=[lora]", "trainer.lr=2e-3"], older)
    keys = ("trainer.weight_decay", "trainer.extra.adam_beta2", "dataset.seed", "patch.lora.alpha", "trainer.lr")
    again = repeated()
    assert values(again, *keys) == [0.05, 0.95, 9, 7.0, 2e-3]
    assert again.repeats is not None
    assert "trainer.weight_decay: 0.05 (today's default: 0.0)" in again.repeats.kept
    assert len(again.repeats.kept) == 4
    assert again.repeats.changed == []
    more = repeated("trainer.seed=5", "run_dir=new")
    assert values(more, *keys) == [0.05, 0.95, 9, 7.0, 2e-3]
    assert more.repeats is not None
    assert more.repeats.changed == ["trainer.seed: 42 -> 5"]


def test_what_is_typed_wins_also_when_it_is_todays_default() -> None:
    recorded(["patch=[lora]"], older)
    again = repeated("trainer.weight_decay=0.0", "patch.lora.rank=4", "dataset=quiz")
    keys = ("trainer.weight_decay", "trainer.extra.adam_beta2", "patch.lora.rank", "patch.lora.alpha", "dataset.seed")
    assert values(again, *keys) == [0.0, 0.95, 4, 7.0, 0]
    assert again.repeats is not None
    assert "trainer.weight_decay: 0.05 -> 0.0" in again.repeats.changed


def test_another_choice_is_taken_and_the_rest_stays() -> None:
    recorded(["patch=[lora]"], older)
    without = repeated("patch=[]")
    assert (without.cfg.patch, without.cfg.trainer.weight_decay) == ({}, 0.05)
    other = repeated("formatter=completion", "patch=[lora,gradient_checkpointing]")
    assert set(other.cfg.patch) == {"lora", "gradient_checkpointing"}
    assert (other.cfg.patch.lora.alpha, other.cfg.formatter._target_) == (32, "dumbo.formatter.completion.Completion")


def test_choices_that_were_other_defaults_are_the_runs() -> None:
    """The class of a group, and patches and keys that are there only since."""

    def once(config: dict[str, Any]) -> None:
        config["formatter"] = {"_target_": "dumbo.formatter.completion.Completion", "separator": " "}
        config["patch"] = {"gradient_checkpointing": config["patch"].pop("gradient_checkpointing")}
        del config["performance"]

    folder = recorded(["patch=[lora,gradient_checkpointing]"], once)
    facts = json.loads((folder / "run.json").read_text())
    facts["choices"]["formatter"] = "completion"
    (folder / "run.json").write_text(json.dumps(facts))
    again = repeated()
    assert again.cfg.formatter == {"_target_": "dumbo.formatter.completion.Completion", "separator": " "}
    assert again.choices["formatter"] == "completion"
    assert set(again.cfg.patch) == {"gradient_checkpointing"}
    assert again.cfg.performance == "off"  # what a run did before there was such a key


def test_a_sweep_and_a_look_at_the_config_have_the_runs_values_too(capsys: pytest.CaptureFixture[str]) -> None:
    def once(config: dict[str, Any]) -> None:
        older(config)
        config["formatter"] = {"_target_": "dumbo.formatter.completion.Completion", "separator": "a 'b'"}

    recorded(["patch=[lora]", "trainer.lr=2e-3"], once)
    command = with_recorded_values(with_recorded(parse(["-m", "repeat=old", "trainer.lr=1,2", "patch.lora.rank=4,8"])))
    assert command.overrides[-2:] == ("trainer.lr=1,2", "patch.lora.rank=4,8")
    job = compose([word.split(",")[0] if word in command.overrides[-2:] else word for word in command.overrides])
    check(job.cfg, job.choices)
    assert values(job, "trainer.weight_decay", "patch.lora.alpha", "patch.lora.rank", "trainer.lr") == [0.05, 7.0, 4, 1]
    assert job.cfg.formatter == {"_target_": "dumbo.formatter.completion.Completion", "separator": "a 'b'"}
    assert cli.main(["repeat=old", "trainer.seed=3", "--cfg", "job"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["trainer"]["weight_decay"], shown["trainer"]["seed"]) == (0.05, 3)


@pytest.mark.parametrize(
    ("place", "value", "wanted"),
    [
        (("model", "_target_"), "os.system", "is not allowed|not a class|may not"),
        (("model", "trust_remote_code"), True, "the run had model.trust_remote_code=True, and code that comes with a model would run"),
        (("trainer", "no_such_key"), 1, "no_such_key"),
    ],
)  # fmt: skip
def test_a_folder_of_somebody_else_brings_no_code(place: tuple[str, str], value: Any, wanted: str) -> None:
    words = ["model=pretrained", "model.path=somewhere"] if "trust_remote_code" in place else []
    recorded(words, lambda config: config[place[0]].update({place[1]: value}))
    with pytest.raises(UserError, match=wanted):
        repeated()


@pytest.mark.parametrize("text", ["[1", "- a\n"])
def test_a_config_that_is_none_is_named(text: str) -> None:
    recorded([])
    Path("old/config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"old/config\.yaml is not"):
        repeated()


def rows(answer: str) -> str:
    return "".join(
        json.dumps({"question": f"What is {n} plus 1?", "answer": f"{answer} {n + 1}"}) + "\n" for n in range(40)
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows.jsonl and a run on it."""
    folder = tmp_path_factory.mktemp("repeat")
    (folder / "rows.jsonl").write_text(rows("It is"))
    before = Path.cwd()
    os.chdir(folder)
    assert cli.main([*FILE, "run_dir=one"]) == 0
    os.chdir(before)
    return folder


def losses(folder: Path) -> list[tuple[Any, ...]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row.get("loss"), row.get("eval_loss"), row.get("grad_norm")) for row in found]


def test_the_same_losses_bitwise(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    facts = json.loads((place / "one/run.json").read_text())
    facts["versions"] = {**versions(), "torch": "1.0.0"}
    (place / "one/run.json").write_text(json.dumps(facts))
    assert cli.main(["repeat=one", "run_dir=two"]) == 0
    said = capsys.readouterr().out
    assert losses(place / "two") == losses(place / "one")
    assert len(losses(place / "two")) == 4 + 3
    assert "the same config" in said
    assert "versions  torch 1.0.0 then, " in said
    assert "repeat    all 7 logged losses are the run's, bit for bit" in said
    told = json.loads((place / "two/run.json").read_text())["repeat"]
    assert told["run"] == str(place / "one")
    assert told["losses"].startswith("all 7")
    assert list(told["files"]) == [str(place / "rows.jsonl")] or list(told["files"]) == ["rows.jsonl"]


def test_changed_data_is_refused_until_it_is_typed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    then = json.loads((place / "one/run.json").read_text())
    (place / "rows.jsonl").write_text(rows("That makes"))
    assert cli.main(["repeat=one", "run_dir=three"]) == 2
    said = capsys.readouterr().err
    assert (
        f"the data is no longer what the run in one was trained on (fingerprint {then['data_fingerprint']} then, "
        in said
    )
    assert f"rows.jsonl: sha256 {then['data']['files']['rows.jsonl']} then, " in said
    assert "Restore it." in said
    assert json.loads((place / "three/run.json").read_text())["status"] == "failed"
    assert cli.main(["repeat=one", "run_dir=four", "dataset.path=rows.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "other data than the run's: fingerprint" in said
    (place / "rows.jsonl").write_text(rows("It is"))


def run_with(**facts: Any) -> tuple[RunDir, io.StringIO]:
    said = io.StringIO()
    return RunDir(path=Path("now"), console=Console(said), started=0.0, facts={"repeat": facts}), said


def test_another_base_model_is_refused_until_it_is_typed() -> None:
    told = {"run": "old", "model": {"sha256": "aa"}, "other_model": False, "hardware": {"cpu": "a CPU", "gpu": "a GPU"}}
    run, said = run_with(**told)
    require_same_model(run, {"sha256": "aa"}, {"cpu": "a CPU"})
    assert "other hardware: a GPU then, a CPU now" in said.getvalue()
    with pytest.raises(UserError, match=r"the base model is another one now \(sha256 aa then, bb now\)"):
        require_same_model(run, {"sha256": "bb"}, {})
    require_same_model(run_with(**{**told, "other_model": True})[0], {"sha256": "bb"}, {})


def test_losses_that_differ_are_counted() -> None:
    for name, last in (("old", 1.5), ("now", 1.25)):
        Path(name).mkdir()
        lines = [
            {"step": 1, "loss": 2.0},
            {"step": 2, "loss": None},
            {"step": 3, "loss": last},
            {"step": 3, "eval_loss": last},
        ]
        Path(name, "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run, _ = run_with(run="old", changed=[])
    compare_losses(run)
    wanted = "2 of 4 logged losses differ, by 0.25 at most; the first: loss of step 3, 1.5 then, 1.25 now"
    assert run.facts["repeat"]["losses"] == wanted
    run, _ = run_with(run="old", changed=["trainer.lr: 1 -> 2"])
    compare_losses(run)
    assert "losses" not in run.facts["repeat"]  # other losses are what was asked for


def test_versions_that_differ() -> None:
    assert differing_versions({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "3", "d": "4"}) == [
        "b 2 then, 3 now",
        "c 3 then, none now",
        "d none then, 4 now",
    ]


@pytest.mark.full
@pytest.mark.parametrize(
    "words",
    [
        ["patch=[lora]", "trainer.packing=true", "trainer.global_batch_size=4", "trainer.micro_batch_size=2", "patch.lora.dropout=0.1"],
        ["patch=[lora,gradient_checkpointing]", "trainer.packing=false", "trainer.global_batch_size=6", "trainer.micro_batch_size=3"],
        ["launch=ddp", "launch.num_processes=2", "trainer.micro_batch_size=1", "trainer.global_batch_size=4"],
    ],
)  # fmt: skip
def test_a_longer_run_bitwise(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    long = [word for word in TINY if "max_steps" not in word and "max_seq_len" not in word]
    assert (
        cli.main(
            [*long, "trainer.max_steps=40", "trainer.max_seq_len=128", "trainer.eval_every=10", *words, "run_dir=one"]
        )
        == 0
    )
    assert cli.main(["repeat=one", "run_dir=two"]) == 0
    assert losses(Path("one")) == losses(Path("two"))
    assert "all 45 logged losses are the run's, bit for bit" in capsys.readouterr().out
