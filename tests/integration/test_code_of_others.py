"""A YAML file, a run's folder or a model from somebody else runs no code, unless it was typed that it may.

What each is told is in test_errors.py (HYDRA); here is code that would leave a file behind if it ran.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from sweeps import NotStarted

import dumbo as package
from dumbo.chat import _loader
from dumbo.cli import main
from dumbo.command import parse
from dumbo.compose import prepare_hydra
from dumbo.errors import UserError
from dumbo.hydra_node import FIXED, NO_LOGGING
from dumbo.outputs.claim import begin
from dumbo.repeat import with_recorded


class Leaves:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.file),)


@pytest.fixture
def pwned(tmp_path: Path) -> Path:
    """The file that foreign code makes; `x.pkl` holds such code, as numpy.load would run it."""
    file = tmp_path / "pwned"
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(Leaves(str(file))))
    import numpy as np

    np.load(tmp_path / "x.pkl", allow_pickle=True)
    assert file.exists(), "the trap works"
    file.unlink()
    return file


LOADS = {"_target_": "numpy.load", "file": "x.pkl", "allow_pickle": True}
CALLBACKS = {"hydra": {"callbacks": {"x": LOADS}}}


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of a sweep's jobs, which do not run."""
    starter = NotStarted()
    monkeypatch.setattr("dumbo.sweep.runner.Warm", starter)
    return starter.words


@pytest.fixture
def users_folder(tmp_path: Path):
    """--config-dir=my, forgotten afterwards."""
    yield tmp_path / "my"
    prepare_hydra([], None)


@pytest.mark.parametrize(
    "words", [[], ["preview"], ["-m", "trainer.seed=1,2"], ["--cfg", "hydra"], ["--info", "config"]]
)
def test_a_file_runs_nothing(words: list[str], pwned: Path, tmp_path: Path, capsys, jobs: list[list[str]]) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(CALLBACKS))
    first = words[:1] if words == ["preview"] else []
    assert main([*first, "mine.yaml", *[word for word in words if word not in first]]) == 2
    assert "hydra.callbacks cannot be set" in capsys.readouterr().err
    assert jobs == []
    assert not pwned.exists()


def test_a_variable_that_is_not_set_is_no_traceback(capsys) -> None:
    """Hydra copies variables before its config can be looked at."""
    assert main(["hydra.job.env_copy=[NOT_THERE]"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("hydra.job.env_copy cannot be set, and there is no environment variable NOT_THERE.")
    assert main(["hydra.job.env_copy=[PATH]"]) == 2
    assert "hydra.job.env_copy cannot be set" in capsys.readouterr().err


def test_from_python_neither(pwned: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(CALLBACKS))
    with pytest.raises(UserError, match=r"hydra\.callbacks cannot be set"):
        package.run(["mine.yaml"])
    assert not pwned.exists()


@pytest.mark.parametrize("launcher", ["process", "basic"])
def test_an_experiment_in_a_sweep_neither(
    launcher: str, pwned: Path, tmp_path: Path, capsys, jobs: list[list[str]], users_folder: Path
) -> None:
    """The first experiment is good; each job's own config is looked at before Hydra takes it."""
    (users_folder / "experiment").mkdir(parents=True)
    (users_folder / "experiment" / "good.yaml").write_text("# @package _global_\ntrainer:\n  max_steps: 1\n")
    (users_folder / "experiment" / "bad.yaml").write_text("# @package _global_\n" + yaml.safe_dump(CALLBACKS))
    logging = {"version": 1, "handlers": {"h": {"()": "numpy.load", **{k: v for k, v in LOADS.items() if k[0] != "_"}}},
               "root": {"handlers": ["h"]}}  # fmt: skip
    (users_folder / "experiment" / "worse.yaml").write_text(
        "# @package _global_\n" + yaml.safe_dump({"hydra": {"job_logging": logging}})
    )
    for bad, said in (("bad", "hydra.callbacks"), ("worse", "hydra.job_logging")):
        words = [
            "--config-dir=my",
            "-m",
            f"+experiment=good,{bad}",
            f"hydra/launcher={launcher}",
            f"sweep_dir=sweep-{bad}",
        ]
        assert main(words) == 2
        assert f"{said} cannot be set" in capsys.readouterr().err
    assert jobs == []
    assert not pwned.exists()


def test_what_stays_possible(tmp_path: Path, capsys, jobs: list[list[str]]) -> None:
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump(
            {
                "hydra": {
                    "mode": "MULTIRUN",
                    "sweeper": {"params": {"trainer.seed": "1,2", "trainer.lr": "choice(1e-3)"}},
                }
            }
        )
    )
    assert main(["-m", "mine.yaml", "hydra.sweeper.max_batch_size=1", "sweep_dir=sweep"]) == 0, capsys.readouterr().err
    assert [[word for word in words if "seed" in word] for words in jobs] == [["trainer.seed=1"], ["trainer.seed=2"]]
    assert all("trainer.lr=0.001" in words for words in jobs)


def test_a_typed_searchpath_reaches_the_jobs(tmp_path: Path, capsys, jobs: list[list[str]]) -> None:
    (tmp_path / "extra" / "experiment").mkdir(parents=True)
    (tmp_path / "extra" / "experiment" / "y.yaml").write_text("# @package _global_\ntrainer:\n  lr: 7e-3\n")
    words = [f"hydra.searchpath=[file://{tmp_path}/extra]", "+experiment=y"]
    assert main(["-m", *words, "trainer.seed=1,2", "sweep_dir=sweep"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main([*jobs[0], "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["lr"] == 7e-3


def test_a_job_of_hydras_own_launcher_can_be_repeated(tmp_path: Path, monkeypatch, capsys) -> None:
    """It runs in the sweep's process; what its folder holds are its words, not the sweep's."""
    monkeypatch.setattr(
        "dumbo.train.train", lambda plugins, composed, command: begin(plugins, composed, command).release() or {}
    )
    assert main(["-m", "hydra/launcher=basic", "trainer.seed=1,2", "trainer.lr=1e-3", "sweep_dir=sweep"]) == 0, (
        capsys.readouterr().err
    )
    words = yaml.safe_load((tmp_path / "sweep" / "1" / "overrides.yaml").read_text())
    assert words == ["trainer.seed=2", "trainer.lr=0.001"]
    assert with_recorded(parse(["repeat=sweep/1"])).overrides == ("trainer.seed=2", "trainer.lr=0.001")


def test_what_is_dumbos_own_is_as_shipped() -> None:
    from hydra.core.hydra_config import HydraConfig

    from dumbo.compose import compose

    compose([])
    raw = OmegaConf.create(OmegaConf.to_container(HydraConfig.instance().cfg, resolve=False)["hydra"])
    plain = OmegaConf.to_container(raw, resolve=False)
    for key, (value, _) in FIXED.items():
        node = plain
        for part in key.split("."):
            node = node[part]
        assert node == value, key
    assert plain["job_logging"] == NO_LOGGING


# ---- a run's folder ---------------------------------------------------------------------------------------------------


def recorded(folder: Path, *words: str, experiment: Any = None, config: Any = None) -> Path:
    """A run's folder as somebody could have made it."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"status": "failed"}))
    (folder / "overrides.yaml").write_text(yaml.safe_dump([*words, "run_dir=old"]))
    (folder / "config.yaml").write_text(yaml.safe_dump(config or {}))
    if experiment is not None:
        (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    return folder


@pytest.mark.parametrize("key", ["repeat", "resume"])
def test_a_runs_folder_says_nothing_to_hydra(
    key: str, pwned: Path, tmp_path: Path, capsys, jobs: list[list[str]]
) -> None:
    words = [f"+hydra.callbacks.x={{_target_: numpy.load, file: {tmp_path}/x.pkl, allow_pickle: true}}", "trainer.seed=7",
             "hydra/launcher=basic", "hydra.mode=MULTIRUN", "+hydra.job.env_set.A=b", "trainer.max_steps=1"]  # fmt: skip
    recorded(tmp_path / "old", *words)
    assert with_recorded(parse([f"{key}=old"])).overrides[:2] == ("trainer.seed=7", "trainer.max_steps=1")
    assert main([f"{key}=old", "--cfg", "job"]) == 0, capsys.readouterr().err
    assert not pwned.exists()
    if key == "repeat":
        assert main(["-m", "repeat=old", "trainer.lr=1,2", "sweep_dir=sweep"]) == 0, "its own sweep"
        assert len(jobs) == 2
    recorded(tmp_path / "other", experiment=CALLBACKS)
    assert main([f"{key}=other", "run_dir=new" if key == "repeat" else "trainer.seed=1"]) == 2
    assert "hydra.callbacks cannot be set" in capsys.readouterr().err
    assert not pwned.exists()


@pytest.mark.parametrize("key", ["repeat", "resume"])
@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("model.trust_remote_code=true", "code that comes with a model would run"),
        ("++model.trust_remote_code=1", "code that comes with a model would run"),
        ("hydra.searchpath=[file://elsewhere]", "YAML files would come from there"),
        ("+hydra.launcher.setup=[ls]", "shell commands would run"),
    ],
)
def test_what_must_be_typed_again(key: str, word: str, why: str, tmp_path: Path) -> None:
    recorded(tmp_path / "old", "model=pretrained", "model.path=a/b", word)
    with pytest.raises(UserError, match=rf"{key}: the run had .*, and {why}\.\n  Type .* again if you trust it"):
        with_recorded(parse([f"{key}=old"]))
    assert word in with_recorded(parse([f"{key}=old", word])).overrides


def test_a_key_typed_as_false_needs_no_trust(tmp_path: Path) -> None:
    recorded(tmp_path / "old", "model.trust_remote_code=false")
    assert "model.trust_remote_code=false" in with_recorded(parse(["repeat=old"])).overrides


def test_trust_that_is_typed_is_taken(tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump(
            {"defaults": [{"override /model": "pretrained"}], "model": {"path": "a/b", "trust_remote_code": True}}
        )
    )
    assert main(["mine.yaml", "model.trust_remote_code=true", "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["trust_remote_code"] is True


def test_a_group_by_another_name_is_no_way_round(tmp_path: Path, capsys) -> None:
    store = ConfigStore.instance()
    store.store(group="evil", name="x", node=LOADS, provider="test")
    try:
        assert main(["+evil@hydra.callbacks.x=x"]) == 2
        assert "hydra.callbacks cannot be set" in capsys.readouterr().err
    finally:
        del store.repo["evil"]


# ---- chat ---------------------------------------------------------------------------------------------------------------

ADAPTER = {"model": {"_target_": "dumbo.model.pretrained.Pretrained", "path": "a/b", "trust_remote_code": True}}


def test_chat_trusts_no_base_by_itself(tmp_path: Path, capsys) -> None:
    run = recorded(tmp_path / "old", config=ADAPTER)
    (run / "model").mkdir()
    (run / "model" / "adapter_config.json").write_text("{}")
    (run / "model" / "adapter_model.safetensors").touch()  # no pickled weights: those are refused first
    assert main(["chat", "run=old", "chat.prompt=hello"]) == 2
    said = capsys.readouterr().err
    assert "model.trust_remote_code=true: code that comes with it would run" in said
    assert "Type chat.trust_remote_code=true if you trust it" in said
    assert _loader(run, (), True).trust_remote_code is True


@pytest.fixture
def brings_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Run folders whose model/ has a config, or a tokenizer, with code of its own that leaves a file."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def make(name: str) -> Path:
        model = recorded(tmp_path / f"of-{name}", config={"model": {"_target_": "dumbo.model.tiny.Tiny"}}) / "model"
        model.mkdir()
        (model / "model.safetensors").touch()
        (model / f"own_{name}.py").write_text(
            f"import pathlib\npathlib.Path({str(tmp_path / 'pwned')!r}).touch()\nfrom transformers import PretrainedConfig\n"
            "class C(PretrainedConfig):\n    model_type = 'own_x'\n"
        )
        facts: dict[str, Any] = {"config": {"model_type": "own_x"}, "tokenizer_config": {}}
        auto = {
            "config": {"AutoConfig": "own_config.C"},
            "tokenizer_config": {"AutoTokenizer": [None, "own_tokenizer_config.C"]},
        }
        facts[name]["auto_map"] = auto[name]
        for file, content in facts.items():
            (model / f"{file}.json").write_text(json.dumps(content))
        return model.parent

    return make


@pytest.mark.parametrize("name", ["config", "tokenizer_config"])
def test_chat_runs_no_code_of_a_saved_model(name: str, brings_code, tmp_path: Path, capsys) -> None:
    run = brings_code(name)
    assert main(["chat", f"run={run}", "chat.prompt=hello"]) == 2
    said = capsys.readouterr().err
    assert f"{name}.json names code of the model's own" in said
    assert "chat.trust_remote_code=true" in said
    assert not (tmp_path / "pwned").exists()


def test_chat_runs_it_when_that_is_typed(brings_code, tmp_path: Path) -> None:
    from dumbo.chat import load_run

    run = brings_code("config")
    with pytest.raises((ValueError, OSError)):  # a config alone makes no model
        load_run(run, trusts_code=True)
    assert (tmp_path / "pwned").exists(), "it is this code that the test before was spared"


# ---- secrets of a sweep -------------------------------------------------------------------------------------------------


WITH_SECRETS = """
class T:
    def __init__(self, api_key: str, more: dict, other: dict, env: str) -> None: ...
    def start(self, run_dir, name, config) -> None: ...
    def log(self, row, step) -> None: ...
    def finish(self, status, metrics) -> None: ...
"""


def test_a_sweep_writes_no_secret(
    tmp_path: Path, capsys, jobs: list[list[str]], users_folder: Path, monkeypatch
) -> None:
    (users_folder / "tracker").mkdir(parents=True)
    (users_folder / "tracker_with_secrets.py").write_text(WITH_SECRETS)
    (users_folder / "tracker" / "t.yaml").write_text(
        "# @package tracker.t\n_target_: tracker_with_secrets.T\napi_key: ???\nmore: {}\nother: null\nenv: null\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "tracker: {t: {other: {password: from-file}}}\nhydra: {sweeper: {params: {++tracker.t.more.token: 'swept-a,swept-b'}}}\n"
    )
    monkeypatch.setenv("MY_KEY", "of-the-environment")
    words = ["-m", "--config-dir=my", "mine.yaml", "tracker=[t]", "tracker.t.api_key=typed-one,typed-two",
             "++tracker.t.more.secret=typed-three", "tracker.t.env=${oc.env:MY_KEY}", "trainer.seed=1", "sweep_dir=sweep"]  # fmt: skip
    assert main(words) == 0, capsys.readouterr().err
    written = {
        file.relative_to(tmp_path): file.read_text() for file in (tmp_path / "sweep").rglob("*") if file.is_file()
    }
    assert Path("sweep/multirun.yaml") in written
    out = capsys.readouterr().out
    for secret in ("typed-one", "typed-two", "typed-three", "from-file", "swept-a", "swept-b", "of-the-environment"):
        assert [str(name) for name, text in written.items() if secret in text or secret in str(name)] == [], secret
        assert secret not in out
    kept = OmegaConf.to_container(OmegaConf.create(written[Path("sweep/multirun.yaml")]), resolve=False)
    assert kept["tracker"]["t"]["other"] == {"password": "***"}
    assert kept["tracker"]["t"]["env"] == "${oc.env:MY_KEY}"
    assert kept["hydra"]["overrides"]["task"][2] == "tracker.t.api_key=***"
    assert kept["trainer"]["seed"] == 1
    swept = ("tracker.t.api_key=", "++tracker.t.more.token=")
    given = {tuple(word.partition("=")[2] for word in words if word.startswith(swept)) for words in jobs}
    assert given == {(token, key) for token in ("swept-a", "swept-b") for key in ("typed-one", "typed-two")}, (
        "the jobs have them"
    )
