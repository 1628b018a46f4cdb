"""`resume=` and `repeat=`: what was typed travels through overrides.yaml, whatever characters it holds.

That the numbers are the same is shown in test_resume.py; here the words are, without training.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import dumbo as package
from dumbo import cli
from dumbo.check import check
from dumbo.command import Command, parse
from dumbo.compose import Composed, compose, prepare_hydra
from dumbo.errors import UserError
from dumbo.outputs.claim import begin
from dumbo.outputs.run_dir import RunDir
from dumbo.override_text import quoted, value_text
from dumbo.repeat import with_recorded

Starts = Callable[..., tuple[dict[str, Any], RunDir]]


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Starts:
    """Runs the command line up to where the run's folder is claimed and written; gives its config and the run."""
    seen: list[tuple[dict[str, Any], RunDir]] = []

    def no_training(plugins: Any, composed: Composed, command: Command) -> dict[str, Any]:
        run = begin(plugins, composed, command)
        plain = OmegaConf.to_container(composed.cfg, resolve=True)
        assert isinstance(plain, dict)
        seen.append((plain, run))
        run.release()
        return {}

    monkeypatch.setattr("dumbo.train.train", no_training)

    def start(*words: str) -> tuple[dict[str, Any], RunDir]:
        code = cli.main(list(words))
        assert code == 0, capsys.readouterr().err
        return seen[-1]

    return start


def without_place(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("run_dir", "resume", "repeat")}


STRANGE = [
    "a b.jsonl",
    "it's.jsonl",
    'say "hi".jsonl',
    "both ' and \".jsonl",
    "[brackets], {braces} (round).jsonl",
    "ünïcødé 日本 😀.jsonl",
    "comma,equals=colon:.jsonl",
    "back\\slash.jsonl",
    "dollar$ 100% #hash ~tilde.jsonl",
    "null",
]


@pytest.mark.parametrize("key", ["resume", "repeat"])
def test_last_is_the_newest_run(key: str, starts: Starts, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([f"{key}=last"]) == 2
    assert f"{key}=last: there is no run below outputs/" in capsys.readouterr().err
    _, older = starts("trainer.seed=6")
    _, run = starts("trainer.seed=7")
    for folder, began in ((older, "2026-01-01T00:00:00"), (run, "2026-01-01T00:00:01")):
        folder.update(started=began)
    config, again = starts(f"{key}=last")
    assert config["trainer"]["seed"] == 7
    assert (again.path.resolve() == run.path.resolve()) == (key == "resume")


@pytest.mark.parametrize("name", STRANGE)
def test_any_path_travels(name: str, starts: Starts, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"question": "a", "answer": "b"}\n')
    words = [
        "dataset=files",
        f"dataset.path={value_text(str(tmp_path / name))}",
        "dataset.kind=jsonl",
        "trainer.extra.adam_beta2=0.9",
        "run_dir=old",
    ]
    first, run = starts(*words)
    assert first["dataset"]["path"] == str(tmp_path / name)
    assert yaml.safe_load((run.path / "overrides.yaml").read_text()) == [
        words[0],
        words[1],
        words[2],
        f"++{words[3]}",
        words[4],
    ]
    again, other = starts("repeat=old", "run_dir=new")
    assert without_place(again) == without_place(first)
    assert other.path.name == "new"
    assert other.facts["config_hash"] == run.facts["config_hash"]
    on, same = starts("resume=old")
    assert without_place(on) == without_place(first)
    assert same.path == run.path


@pytest.mark.parametrize("text", [*STRANGE, "", "\\", "a\\", "a\\\\", "'", '"', "true", "1e-4", "\n two \n lines"])
def test_a_quoted_text_is_read_back_as_it_was(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(f"x={quoted(text)}").value() == text
    assert OverridesParser.create().parse_override(f"x={value_text([text, {'k': text}])}").value() == [
        text,
        {"k": text},
    ]


def test_what_is_typed_now_wins(starts: Starts) -> None:
    starts("trainer.lr=1e-3", "trainer.seed=1", "patch=[lora]", "patch.lora.rank=4", "run_dir=old")
    again, _ = starts("repeat=old", "trainer.seed=2", "run_dir=new")
    assert (again["trainer"]["lr"], again["trainer"]["seed"], again["patch"]["lora"]["rank"]) == (1e-3, 2, 4)
    other, _ = starts("repeat=old", "patch.lora.rank=8", "run_dir=newer")
    assert other["patch"]["lora"]["rank"] == 8


def test_a_repeated_run_can_be_repeated(starts: Starts) -> None:
    starts("trainer.lr=1e-3", "run_dir=one")
    starts("repeat=one", "trainer.seed=5", "run_dir=two")
    third, run = starts("repeat=two", "run_dir=three")
    assert (third["trainer"]["lr"], third["trainer"]["seed"]) == (1e-3, 5)
    words = yaml.safe_load((run.path / "overrides.yaml").read_text())
    assert not [word for word in words if word.startswith("repeat")], "what is written needs no other folder"


def test_an_experiment_file_travels_even_when_it_is_gone(starts: Starts, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("trainer:\n  lr: 5e-3\n")
    first, run = starts("mine.yaml", "trainer.seed=3", "run_dir=old")
    assert OmegaConf.load(run.path / "experiment.yaml") == {"trainer": {"lr": 5e-3}}
    (tmp_path / "mine.yaml").unlink()
    again, _ = starts("repeat=old", "run_dir=new")
    assert without_place(again) == without_place(first)
    assert again["trainer"]["lr"] == 5e-3
    on, _ = starts("resume=old")
    assert on["trainer"]["lr"] == 5e-3


def test_an_edited_experiment_file_does_not_change_what_is_repeated(starts: Starts, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("trainer:\n  lr: 5e-3\n")
    starts("mine.yaml", "run_dir=old")
    (tmp_path / "mine.yaml").write_text("trainer:\n  lr: 9e-3\n")
    assert starts("repeat=old", "run_dir=new")[0]["trainer"]["lr"] == 5e-3


def test_an_older_file_travels_as_the_words_it_stood_for(starts: Starts, tmp_path: Path) -> None:
    older = {
        "model": {"base_model": "some/model"},
        "datasets": [{"path": "some/rows"}],
        "trainer": {"arguments": {"learning_rate": 5e-3}},
    }
    (tmp_path / "older.yaml").write_text(yaml.safe_dump(older))
    first, _ = starts("older.yaml", "run_dir=old")
    (tmp_path / "older.yaml").unlink()
    assert without_place(starts("repeat=old", "run_dir=new")[0]) == without_place(first)


def test_a_users_folder_travels(starts: Starts, tmp_path: Path) -> None:
    (tmp_path / "my" / "dataset").mkdir(parents=True)
    (tmp_path / "my" / "dataset" / "mine.yaml").write_text(
        "_target_: dumbo.dataset.quiz.Quiz\nseed: 7\neval_limit: 10\nlimit: 20\n"
    )
    (tmp_path / "other").mkdir()
    try:
        starts("--config-dir=my", "dataset=mine", "run_dir=old")
        for words in (["repeat=old"], ["--config-dir=other", "repeat=old"], ["resume=old"]):
            with pytest.raises(UserError, match=r"the run used plugins from .*my, whose code would run"):
                with_recorded(parse(words))  # a run's folder from somebody else must not bring code along
        assert starts("--config-dir=my", "repeat=old", "run_dir=new")[0]["dataset"]["seed"] == 7
        assert starts("--config-dir=other", "--config-dir=my", "repeat=old", "run_dir=newer")[0]["dataset"]["seed"] == 7
    finally:
        prepare_hydra([], None)


def test_a_secret_is_written_nowhere_and_asked_for(starts: Starts, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my" / "tracker").mkdir(parents=True)
    (tmp_path / "my" / "secret_tracker.py").write_text(
        "class T:\n    def __init__(self, api_key, more=None): ...\n    def start(self, *a): ...\n"
        "    def log(self, *a): ...\n    def finish(self, *a): ...\n"
    )
    (tmp_path / "my" / "tracker" / "t.yaml").write_text(
        "# @package tracker.t\n_target_: secret_tracker.T\napi_key: ???\nmore: null\n"
    )
    monkeypatch.setenv("MY_KEY", "hunter2hunter2")
    try:
        starts(
            "--config-dir=my",
            "tracker=[t]",
            "tracker.t.api_key=correct-horse",
            "tracker.t.more={password:battery}",
            "run_dir=old",
        )
        written = "".join(file.read_text() for file in (tmp_path / "old").iterdir() if file.is_file())
        assert "correct-horse" not in written
        assert "battery" not in written
        with pytest.raises(UserError, match=r"the value of tracker\.t\.api_key was not written down"):
            with_recorded(parse(["--config-dir=my", "repeat=old"]))
        again, _ = starts(
            "--config-dir=my", "repeat=old", "tracker.t.api_key=${oc.env:MY_KEY}", "tracker.t.more=null", "run_dir=new"
        )
        assert again["tracker"]["t"]["api_key"] == "hunter2hunter2"
        written = "".join(file.read_text() for file in (tmp_path / "new").iterdir() if file.is_file())
        assert "hunter2" not in written
        assert "${oc.env:MY_KEY}" in written
        assert (
            starts("--config-dir=my", "repeat=new", "run_dir=newer")[0]["tracker"]["t"]["api_key"] == "hunter2hunter2"
        )
    finally:
        prepare_hydra([], None)


def test_a_secret_of_an_experiment_file_is_named_and_asked_for(starts: Starts, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "trainer: {lr: 2e-3}\nchat: {system: 'https://me:pw@host'}\nmodel: {seed: 3}  # api_key: in-a-comment\n"
        "hydra: {sweeper: {params: {a.b.hub_token: hf_abcd}}}\n"
    )
    first, run = starts("mine.yaml", "run_dir=old")
    assert first["chat"]["system"] == "https://me:pw@host"
    written = "".join(file.read_text() for file in run.path.iterdir() if file.is_file())
    assert not any(secret in written for secret in ("me:pw", "in-a-comment", "hf_abcd"))
    with pytest.raises(
        UserError, match=r"lacks values that were not written down \(\*\*\*\): chat\.system, hydra\.sweeper\.params"
    ):
        with_recorded(parse(["repeat=old"]))
    with pytest.raises(UserError, match=r"Type them again: hydra\.sweeper\.params\.a\.b\.hub_token=…"):
        with_recorded(parse(["repeat=old", "chat.system=null"]))
    text = (tmp_path / "old" / "experiment.yaml").read_text()
    (tmp_path / "old" / "experiment.yaml").write_text(text.replace("'***'", "x"))
    again, _ = starts("repeat=old", "chat.system=mine", "run_dir=new")
    assert (again["chat"]["system"], again["trainer"]["lr"], again["model"]["seed"]) == ("mine", 2e-3, 3)


def test_stars_of_ones_own_are_no_secret(starts: Starts, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("chat: {system: 'Be *** brief ***'}\n")
    first, _ = starts("mine.yaml", "chat.prompt='***bold***'", "run_dir=old")
    assert without_place(starts("repeat=old", "run_dir=new")[0]) == without_place(first)


def test_part_of_a_typed_mapping_is_asked_for_by_its_key(starts: Starts, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "overrides.yaml").write_text(json.dumps(['tracker.t.more={token:"***",n:1}']))
    with pytest.raises(UserError, match=r"the value of tracker\.t\.more\.token was not written down"):
        with_recorded(parse(["repeat=old"]))
    typed = with_recorded(parse(["repeat=old", "tracker.t.more.token=abc"])).overrides
    assert typed == ('tracker.t.more={token:"***",n:1}', "tracker.t.more.token=abc")


# ---- resume=auto ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["absent", "empty"])
def test_auto_starts_fresh_in_an_absent_or_empty_folder(folder: str, starts: Starts, tmp_path: Path) -> None:
    if folder == "empty":
        (tmp_path / folder).mkdir()
    _, run = starts(f"run_dir={folder}", "resume=auto")
    assert not run.resuming
    assert run.facts["status"] == "running"
    _, again = starts(f"run_dir={folder}", "resume=auto")
    assert again.resuming


def test_auto_without_a_folder_finds_the_unfinished_run_of_the_same_config(starts: Starts) -> None:
    _, first = starts("trainer.lr=1e-3")
    _, other = starts("trainer.lr=2e-3", "resume=auto")
    assert not other.resuming
    _, on = starts("trainer.lr=1e-3", "resume=auto", "trainer.save_every=7")
    assert (on.resuming, on.path) == (True, first.path)
    broken = first.path.parent / "broken"
    broken.mkdir()
    (broken / "run.json").write_text('{"status": ')
    assert starts("trainer.lr=1e-3", "resume=auto")[1].path == first.path, "a broken neighbour is passed by"


@pytest.mark.parametrize("word", ["resume=auto", "resume='auto'", 'resume="auto"'])
def test_auto_refuses_another_config_and_shows_what_differs(word: str, starts: Starts, capsys) -> None:
    starts("run_dir=old", "trainer.lr=1e-3", "patch=[lora]")
    assert cli.main(["run_dir=old", word, "trainer.lr=2e-3", "patch=[]", "trainer.log_every=5"]) == 2
    said = capsys.readouterr().err
    assert "trainer.lr: 0.001 -> 0.002" in said
    assert "patch.lora.rank: 16 -> (absent)" in said
    assert "log_every" not in said, "changes no number"
    assert "resume=" in said
    assert "run_dir=" in said


def test_resume_with_a_change_goes_on_and_shows_it(starts: Starts, capsys) -> None:
    starts("run_dir=old", "trainer.max_steps=4")
    capsys.readouterr()
    on, run = starts("resume=old", "trainer.max_steps=8")
    assert on["trainer"]["max_steps"] == 8
    assert "changed   trainer.max_steps: 4 -> 8" in capsys.readouterr().out
    assert yaml.safe_load((run.path / "config.yaml").read_text())["trainer"]["max_steps"] == 4, (
        "not before the data is known"
    )
    run.write_down()
    assert yaml.safe_load((run.path / "config.yaml").read_text())["trainer"]["max_steps"] == 8
    assert starts("resume=old")[0]["trainer"]["max_steps"] == 8, "the change is part of the run now"


def test_a_folder_is_free_again_after_a_refused_start(starts: Starts, capsys) -> None:
    """In one process, as in a notebook: the lock of the refused start must not outlive it."""
    starts("run_dir=old", "trainer.lr=1e-3")
    command = parse(["run_dir=old", "resume=auto", "trainer.lr=2e-3"])
    done = compose(command.overrides)
    with pytest.raises(UserError, match="another config") as held:  # holds the traceback, as a notebook does
        begin(check(done.cfg, done.choices), done, command)
    assert held.value is not None
    assert starts("run_dir=old", "resume=auto", "trainer.lr=1e-3")[1].resuming


def test_a_run_json_that_is_none_is_named(tmp_path: Path, capsys) -> None:
    for name, text in (("cut", '{"status": '), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
        (tmp_path / name / "overrides.yaml").write_text("[]")
        for words in ([f"run_dir={name}"], [f"resume={name}"], [f"run_dir={name}", "resume=auto"]):
            assert cli.main(words) == 2
            said = capsys.readouterr().err
            assert f"{name}/run.json is not what a run writes" in said
            assert "Traceback" not in said


def test_from_python_too(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "overrides.yaml").write_text(json.dumps(["trainer.lr=1e-3", "run_dir=old"]))
    seen: list[Composed] = []
    monkeypatch.setattr("dumbo.train.train", lambda plugins, composed, command: seen.append(composed) or {})
    package.run(["repeat=old", "trainer.seed=9"])
    assert (seen[0].cfg.trainer.lr, seen[0].cfg.trainer.seed, seen[0].cfg.run_dir) == (1e-3, 9, None)


def test_another_launch_takes_the_keys_of_the_first_away(starts: Starts, tmp_path: Path) -> None:
    """`resume=RUN launch=single` after a run of several ranks; without a new launch its keys stay."""
    run = tmp_path / "run"
    few = ("trainer.micro_batch_size=1", f"run_dir={run}")
    starts("launch=fsdp", "launch.num_processes=2", "launch.reshard_after_forward=false", *few)
    same, _ = starts(f"repeat={run}", f"run_dir={tmp_path / 'same'}")
    assert same["launch"]["num_processes"] == 2
    other, _ = starts(f"repeat={run}", "launch=single", f"run_dir={tmp_path / 'other'}")
    assert set(other["launch"]) == {"_target_"}
    again, _ = starts(f"resume={run}", "launch=ddp", "launch.num_processes=1")
    assert again["launch"]["num_processes"] == 1
