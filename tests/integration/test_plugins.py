"""Plugins from outside: a user's folder, an installed package, and dumbo itself installed from its wheel.

No registration, no base class: a class and a YAML file. The packages are built with hatchling and installed with pip
into a folder of the test's own, without a network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

import dumbo as package

ROOT = Path(package.__file__).resolve().parent.parent
SHORT = (
    "trainer.max_steps=2", "trainer.num_answers=0", "trainer.num_samples=0", "trainer.eval_every=null",
    "trainer.eval_at_start=false", "verify.mode=off",
)  # fmt: skip


def write(folder: Path, **named: str) -> None:
    """Files by path, `/` as `__` and `.` as `_dot_`."""
    for name, text in named.items():
        path = folder / name.replace("_dot_", ".").replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())


USERS_MODULE = '''
    """Four plugins of a user: plain classes."""

    import json
    from dataclasses import dataclass
    from typing import ClassVar, Literal

    from dumbo.interfaces import IGNORE, Example, Message, Row, Source, Splits, Stage


    @dataclass(frozen=True, kw_only=True)
    class Scale:
        """Multiplies a model's output head."""

        factor: float = 1.0
        mode: Literal["head", "all"] = "head"
        stage: ClassVar[Stage] = Stage.KERNELS

        def apply(self, model):
            import torch

            with torch.no_grad():
                model.get_output_embeddings().weight.mul_(self.factor)
            return model

        def evidence(self, model):
            return f"head times {self.factor}"


    @dataclass(frozen=True, kw_only=True)
    class Counting:
        """Counts up to a number."""

        upto: int

        def load(self):
            rows = [
                Row(source=Source("counting", n), messages=[Message(role="user", content=f"after {n}?"),
                                                            Message(role="assistant", content=str(n + 1))])
                for n in range(1, self.upto + 1)
            ]
            return Splits(train=[rows], eval=None, eval_fraction=0.25, fingerprint=f"counting-{self.upto}", name="counting")


    @dataclass(frozen=True, kw_only=True)
    class Shout:
        """Question and answer in capitals; loss on all of it."""

        mark: str = "!"

        def format(self, rows, tokenizer):
            texts = [" ".join(m["content"].upper() + self.mark for m in row.messages) for row in rows]
            ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
            return [Example(input_ids=one, labels=[IGNORE, *one[1:]], source=row.source) for one, row in zip(ids, rows)]


    @dataclass(kw_only=True)
    class Lines:
        """Appends what it is told to a file."""

        file: str

        def start(self, run_dir, name, config):
            self._say(["start", name, config["dataset"]["upto"]])

        def log(self, row, step):
            if "loss" in row:  # rows of evaluations carry eval_loss
                self._say(["log", step, row["loss"]])

        def finish(self, status, metrics):
            self._say(["finish", status, metrics["train_loss"]])

        def _say(self, what):
            with open(self.file, "a") as out:
                out.write(json.dumps(what) + "\\n")
'''


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A user's folder: a module, and a YAML file for each plugin."""
    folder = tmp_path / "my_conf"
    write(
        folder,
        my_plugins_dot_py=USERS_MODULE,
        patch__scale_dot_yaml="""
            # @package patch.scale
            # Scales the output head.
            _target_: my_plugins.Scale
            factor: 1.0
            mode: head
        """,
        dataset__counting_dot_yaml="_target_: my_plugins.Counting\nupto: 32\n",
        formatter__shout_dot_yaml="_target_: my_plugins.Shout\nmark: '!'\n",
        tracker__lines_dot_yaml="# @package tracker.lines\n_target_: my_plugins.Lines\nfile: ???\n",
    )
    return folder


def test_a_users_patch_dataset_formatter_and_tracker_in_a_run(users: Path, tmp_path: Path) -> None:
    metrics = package.run(
        [
            "patch=[scale]", "patch.scale.factor=0.5", "dataset=counting", "dataset.upto=16", "formatter=shout",
            "tracker=[lines]", "tracker.lines.file=told.jsonl", "run_dir=run", *SHORT,
        ],
        config_dir=str(users),
    )  # fmt: skip
    facts = json.loads(Path("run/run.json").read_text())
    assert facts["status"] == "finished"
    assert metrics["steps"] == 2
    assert facts["patches"] == {"scale": "applied: head times 0.5"}
    assert facts["data"]["name"] == "counting"
    assert facts["data"]["train_documents"] + facts["data"]["eval_documents"] == 16
    told = [json.loads(line) for line in Path("told.jsonl").read_text().splitlines()]
    assert [what for what, *_ in told] == ["start", "log", "log", "finish"]
    assert told[0][2] == 16
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in logged if "loss" in row] == [told[1][2], told[2][2]]
    assert told[3][1:] == ["finished", metrics["train_loss"]]


def test_a_users_yaml_may_shadow_a_shipped_choice(users: Path) -> None:
    from dumbo.compose import compose, prepare_hydra
    from dumbo.errors import UserError

    write(users, trainer__sft_dot_yaml="_target_: dumbo.trainer.sft.Sft\nlr: 0.0625\nmax_seq_len: 64\n")
    try:
        prepare_hydra([users], None)
        assert compose(["model=smollm"]).cfg.trainer == {
            "_target_": "dumbo.trainer.sft.Sft",
            "lr": 0.0625,
            "max_seq_len": 64,
        }
        with pytest.raises(UserError, match=r"leaves out 'seed': add it with \+trainer\.seed=…"):
            compose(["model=smollm", "trainer.seed=1"])
        assert compose(["model=smollm", "+trainer.seed=1"]).cfg.trainer.seed == 1
    finally:
        prepare_hydra([], None)
    assert compose(["model=smollm"]).cfg.trainer.lr == 1e-4


def test_a_tracker_that_fails_does_not_hide_how_the_run_ended(users: Path, capsys) -> None:
    from dumbo.errors import RunFailed

    write(
        users,
        bad_tracker_dot_py="""
            class Bad:
                def start(self, run_dir, name, config): ...
                def log(self, row, step): raise OSError("no connection yet")
                def finish(self, status, metrics): raise OSError("no connection")
        """,
        tracker__bad_dot_yaml="# @package tracker.bad\n_target_: bad_tracker.Bad\n",
        broken_dot_py="""
            class Broken:
                stage = 0
                def apply(self, model): raise OSError("the first cause")
                def evidence(self, model): return ""
        """,
        patch__broken_dot_yaml="# @package patch.broken\n_target_: broken.Broken\n",
    )
    with pytest.raises(RunFailed, match="the first cause"):
        package.run(
            ["tracker=[bad]", "patch=[broken]", "dataset.limit=16", "run_dir=run", *SHORT], config_dir=str(users)
        )
    assert "the first cause" in json.loads(Path("run/run.json").read_text())["error"]
    assert "Bad could not end: OSError: no connection" in capsys.readouterr().out
    package.run(["tracker=[bad]", "dataset.limit=16", "run_dir=whole", *SHORT], config_dir=str(users))
    facts = json.loads(Path("whole/run.json").read_text())
    assert facts["status"] == "finished"
    assert facts["tracker_failures"] == [
        "Bad could not log: OSError: no connection yet: it gets no more rows", "Bad could not end: OSError: no connection",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["patch=[scale]", "patch.scale.fator=2"], "Did you mean patch.scale.factor?"),
        (["patch=[scale]", "+patch.scale.fator=2"], "Did you mean patch.scale.factor?"),
        (["patch=[scale]", "patch.scale.factor=big"], "patch.scale.factor must be a number, got the text 'big'"),
        (["patch=[scale]", "patch.scale.mode=hed"], "Did you mean patch.scale.mode=head?"),
        (["patch=[scael]"], "Did you mean 'scale'?"),
        (["tracker=[lines]"], "tracker.lines.file must be set"),
        (["dataset=counting", "+dataset.up_to=3"], "Did you mean dataset.upto?"),
    ],
)
def test_faults_in_a_users_plugin_are_said_as_well_as_ours(users: Path, words, says) -> None:
    from dumbo.errors import UserError

    with pytest.raises(UserError) as fault:
        package.run(words, config_dir=str(users))
    assert says in str(fault.value)


def test_a_users_choices_stand_in_help_and_info(users: Path, capsys) -> None:
    from dumbo.cli import main

    assert main([f"--config-dir={users}", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("scale", "counting", "shout", "lines"))
    assert main([f"--config-dir={users}", "--info", "patch=scale"]) == 0
    assert "Scales the output head." in capsys.readouterr().out


def test_two_folders_in_one_process_may_use_one_name(tmp_path: Path) -> None:
    from dumbo.errors import UserError

    for name, key in (("one", "alpha"), ("two", "beta")):
        write(
            tmp_path / name,
            same_name_dot_py=f"class P:\n    def __init__(self, {key}=1): ...\n    def apply(self, model): return model\n",
            patch__p_dot_yaml=f"# @package patch.p\n_target_: same_name.P\n{key}: 1\n",
        )
        with pytest.raises(UserError, match=rf"keys of patch\.p: {key}"):
            package.run(["patch=[p]", "+patch.p.gamma=1"], config_dir=str(tmp_path / name))


def test_a_module_named_like_an_installed_one_is_refused(tmp_path: Path) -> None:
    from dumbo.errors import UserError

    write(
        tmp_path / "my",
        yaml_dot_py="class YAMLError:\n    def apply(self, model): return model\n",
        patch__p_dot_yaml="# @package patch.p\n_target_: yaml.YAMLError\n",
    )
    with pytest.raises(UserError, match=r"Python already has a module 'yaml'.*\n.*my_yaml\.py"):
        package.run(["patch=[p]"], config_dir=str(tmp_path / "my"))


def test_plugins_of_several_modules_of_a_folder(tmp_path: Path) -> None:
    """A plugin that one module of the user takes from another is the user's."""
    from dumbo.errors import UserError

    write(
        tmp_path / "my",
        first_half_dot_py="class P:\n    def __init__(self, x=1): ...\n    def apply(self, model): return model\n",
        second_half_dot_py="from first_half import P\n",
        patch__p_dot_yaml="# @package patch.p\n_target_: second_half.P\nx: 1\n",
    )
    with pytest.raises(UserError, match=r"keys of patch\.p: x"):
        package.run(["patch=[p]", "+patch.p.gamma=1"], config_dir=str(tmp_path / "my"))


# ---- installed packages ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def pip(*words: object) -> None:
    """pip of this environment, with nothing from a network."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", *map(str, words), "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dumbo built as a wheel and installed into an empty folder."""
    pytest.importorskip("hatchling")
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    pip("wheel", "--no-build-isolation", "--wheel-dir", wheels, ROOT)
    pip("install", "--target", target, *wheels.glob("dumbo-*.whl"))
    return target


PLUGIN_PYPROJECT = """
    [build-system]
    requires = ["hatchling"]
    build-backend = "hatchling.build"

    [project]
    name = "dumbo-plugin-example"
    version = "1.0"

    [project.entry-points."dumbo.conf"]
    example = "dumbo_plugin_example.conf"

    [tool.hatch.build.targets.wheel]
    packages = ["dumbo_plugin_example"]
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of somebody else, built and installed into a folder of its own."""
    pytest.importorskip("hatchling")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("plugin-site")
    write(
        source,
        pyproject_dot_toml=PLUGIN_PYPROJECT,
        dumbo_plugin_example__patches_dot_py=USERS_MODULE,
        dumbo_plugin_example__conf__patch__scale_head_dot_yaml="""
            # @package patch.scale_head
            # From somebody else's package.
            _target_: dumbo_plugin_example.patches.Scale
            factor: 1.0
            mode: head
        """,
    )
    (source / "dumbo_plugin_example" / "__init__.py").touch()
    pip("install", "--no-build-isolation", "--target", target, source)
    return target


def python(*words: str, first: list[Path], cwd: Path) -> Ran:
    """Python in another folder, with these folders of installed packages before all others."""
    env = {**os.environ, "CI": "true", "PYTHONPATH": os.pathsep.join(map(str, first))}
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


def test_an_installed_packages_choice_is_listed_checked_and_used(plugin: Path, tmp_path: Path) -> None:
    listed = python("-m", "dumbo", "--help", first=[plugin], cwd=tmp_path)
    assert "scale_head" in listed.out, listed.err
    wrong = python("-m", "dumbo", "patch=[scale_head]", "patch.scale_head.fator=2", first=[plugin], cwd=tmp_path)
    assert wrong.code == 2
    assert "Did you mean patch.scale_head.factor?" in wrong.err
    near = python("-m", "dumbo", "patch=[scale_haed]", first=[plugin], cwd=tmp_path)
    assert "Did you mean 'scale_head'?" in near.err
    words = (
        "-m",
        "dumbo",
        "patch=[scale_head]",
        "patch.scale_head.factor=0.5",
        "dataset.limit=16",
        "run_dir=run",
        *SHORT,
    )
    ran = python(*words, first=[plugin], cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["patches"] == {
        "scale_head": "applied: head times 0.5"
    }


def test_a_package_that_announces_what_it_lacks_is_named(tmp_path: Path) -> None:
    info = tmp_path / "site" / "broken_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "broken_plugin").mkdir(exist_ok=True)
    (tmp_path / "site" / "broken_plugin" / "__init__.py").touch()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dumbo.conf]\nbroken = broken_plugin.conf\n")
    ran = python("-m", "dumbo", "--help", first=[tmp_path / "site"], cwd=tmp_path)
    assert ran.code == 2
    assert "announces the conf folder 'broken_plugin.conf'" in ran.err
    assert "pip uninstall broken-plugin" in ran.err
    assert "Traceback" not in ran.err


def test_dumbo_from_a_wheel_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """conf/ and the launcher travel; nothing of the repository is used."""

    def here(*words: str) -> Ran:
        return python("-m", "dumbo", *words, first=[installed], cwd=tmp_path)

    where = python("-c", "import dumbo, hydra_plugins.dumbo_process_launcher as p; print(dumbo.__file__, p.__file__)",
                   first=[installed], cwd=tmp_path)  # fmt: skip
    assert [Path(file).is_relative_to(installed) for file in where.out.split()] == [True, True], where.out + where.err
    from dumbo.groups import GROUPS
    from dumbo.search_path import conf_folder

    for file in conf_folder().rglob("*.yaml"):
        assert (installed / "dumbo" / "conf" / file.relative_to(conf_folder())).read_bytes() == file.read_bytes()
    help_text = here("--help").out
    assert all(f"\n  {group} " in help_text for group in GROUPS)
    shown = here("--cfg", "job", "model=smollm", "patch=[liger,lora]")
    assert "HuggingFaceTB/SmolLM2-135M" in shown.out, shown.err
    ran = here("dataset.limit=16", "run_dir=run", *SHORT)
    assert ran.code == 0, ran.err
    assert ran.out.strip().splitlines()[-1] == "run"


@pytest.mark.full
def test_a_sweep_of_dumbo_from_a_wheel(installed: Path, tmp_path: Path) -> None:
    """The launcher, which Hydra finds by itself, starts jobs with the installed package."""
    words = ("-m", "trainer.seed=1", "dataset.limit=16", "sweep_dir=sweep", *SHORT)
    swept = python("-m", "dumbo", *words, first=[installed], cwd=tmp_path)
    assert swept.code == 0, swept.out + swept.err
    assert len(list((tmp_path / "sweep").glob("*/run.json"))) == 1


def test_the_console_script_and_the_version(installed: Path, tmp_path: Path) -> None:
    script = installed / "bin" / "dumbo"
    assert script.is_file()
    ran = python(str(script), "--version", first=[installed], cwd=tmp_path)
    assert ran.out == f"dumbo {package.__version__}\n", ran.err
