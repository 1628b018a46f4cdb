"""`--help`, `--info`, `--cfg job`, `--version`, shell completion."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import yaml

import dumbo
from dumbo.check import check
from dumbo.command import parse
from dumbo.compose import compose
from dumbo.errors import UserError
from dumbo.groups import GROUPS
from dumbo.search_path import choices_of
from dumbo.words import VERBS


def test_help_is_grouped_with_all_choices_and_three_examples(cli) -> None:
    said = cli("--help")
    assert said.code == 0
    for group in (*GROUPS, "experiment"):
        names = choices_of(group)
        assert names
        part = " ".join(said.out[said.out.index(f"\n  {group:<10} ") :].split())
        for name in names:
            assert name in part, f"{group}={name}"
    for verb in VERBS:
        assert f"\n  {verb} " in said.out
    assert said.out[said.out.index("Examples") :].count("python -m dumbo") == 3
    assert max(map(len, said.out.splitlines())) <= 120
    assert len(said.out.splitlines()) <= 60


def test_the_examples_of_help_compose(cli) -> None:
    examples = [line.strip() for line in cli("--help").out.split("Examples")[1].splitlines() if "python -m" in line]
    for line in examples:
        words = line.removeprefix("python -m dumbo").split()
        if "-m" not in words:
            assert cli(*words, "--cfg", "job").code == 0, line
        else:
            assert parse(words).multirun


@pytest.mark.parametrize("group", [*GROUPS, "experiment"])
def test_info_of_a_group_and_of_each_of_its_choices(cli, group: str) -> None:
    assert cli("--info", group).code == 0
    for name in choices_of(group):
        said = cli("--info", f"{group}={name}")
        assert said.code == 0
        assert f"{group}={name}" in said.out
        assert "_target_" in said.out or group == "experiment"


@pytest.mark.parametrize("key", ["run_dir", "sweep_dir", "resume", "repeat", "run", "performance"])
def test_info_of_a_key_without_a_group(cli, key: str) -> None:
    said = cli("--info", key)
    assert said.code == 0
    assert said.out.startswith(f"{key}: ")
    assert "# " in said.out


def test_info_explains_every_key_of_the_trainer(cli) -> None:
    said = cli("--info", "trainer")
    assert all(f"\n  {key}" in said.out for key in ("lr:", "global_batch_size:", "packing:", "extra:"))
    assert "examples (with packing: packs) an optimizer step" in said.out
    assert "rank: 16" in cli("--info", "patch.lora").out
    assert "rank: 16" in cli("patch=[lora]", "--info", "patch").out


@pytest.mark.parametrize(
    ("group", "keys"), [("patch", ("rank: 16", "backend: inductor")), ("tracker", ("tracking_uri:",))]
)
def test_info_of_a_list_has_the_keys_of_all_its_choices(cli, group: str, keys: tuple[str, ...]) -> None:
    said = cli("--info", group).out
    assert all(key in said for key in keys)
    assert all(f"{group}={name}\n" in said for name in choices_of(group))


def test_hydras_own_topics_still_work(cli) -> None:
    assert "main" in cli("--info", "searchpath").out + cli("--info", "config").out


def test_cfg_job_shows_the_config_and_runs_nothing(cli, tmp_path) -> None:
    said = cli("--cfg", "job", "model=smollm", "patch=[liger,lora]", "trainer.lr=1e-4")
    cfg = yaml.safe_load(said.out)
    assert said.code == 0
    assert list(cfg["patch"]) == ["liger", "lora"]
    assert cfg["model"]["path"] == "HuggingFaceTB/SmolLM2-135M"
    assert "hydra" not in cfg
    assert list(tmp_path.iterdir()) == []


def test_flags_and_words_come_in_any_order(cli) -> None:
    orders = (
        ["--cfg", "job", "trainer.seed=3"],
        ["trainer.seed=3", "--cfg", "job"],
        ["train", "trainer.seed=3", "-c", "job"],
    )
    assert len({cli(*words).out for words in orders}) == 1


def test_version(cli) -> None:
    assert cli("--version").out == f"dumbo {dumbo.__version__}\n"


# ---- shell completion -----------------------------------------------------------------------------------------------


def test_the_script_for_the_shell_is_for_the_command_dumbo(cli) -> None:
    said = cli("--shell-completion", "install=bash")
    assert said.code == 0
    assert "dumbo" in said.out
    assert "complete -o nospace" in said.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script(cli, shell: str) -> None:
    said = cli("--shell-completion", f"install={shell}")
    assert said.code == 0
    assert len(said.out) > 200


def candidates(line: str) -> list[str]:
    """What the script for bash asks for, as it asks."""
    env = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_CWORD": str(len(line.split()))}
    done = subprocess.run(
        [sys.executable, "-m", "dumbo", "--shell-completion", "query=bash"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.split()


def test_candidates_for_groups_choices_and_keys() -> None:
    assert candidates("dumbo model=smollm_") == ["model=smollm_1_7b", "model=smollm_360m", "model=smollm_gguf"]
    assert "trainer.lr=" in candidates("dumbo trainer.l")
    assert {"model=", "patch="} <= {word for letter in "mp" for word in candidates(f"dumbo {letter}")}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_itself_completes(tmp_path) -> None:
    """The script evaluated by bash, its function called as readline would, with `dumbo` on the path."""
    (tmp_path / "dumbo").write_text(f'#!/bin/sh\nexec {sys.executable} -m dumbo "$@"\n')
    (tmp_path / "dumbo").chmod(0o755)
    script = """
eval "$(dumbo --shell-completion install=bash)"
spec=$(complete -p dumbo); function=$(echo "$spec" | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_LINE="dumbo dataset=gs"; COMP_POINT=${#COMP_LINE}; COMP_WORDS=(dumbo dataset=gs); COMP_CWORD=1
$function dumbo dataset=gs dumbo
echo "${COMPREPLY[@]}"
"""
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1:] == ["dataset=gsm8k"], done.stdout + done.stderr


# ---- the words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        (["chat", "chat.prompt=two words"], ('chat.prompt="two words"',)),
        (["repeat=sweep/000-trainer.lr=1e-4-3f9c"], ('repeat="sweep/000-trainer.lr=1e-4-3f9c"',)),
        (["run_dir='a=b'"], ("run_dir='a=b'",)),
        (["resume=last"], ("resume=last",)),
        (["resume=${x}/a=b"], ("resume=${x}/a=b",)),
        (["chat", 'chat.prompt="two words"'], ('chat.prompt="two words"',)),
        (["chat", 'chat.prompt=say "hi"'], ("chat.prompt='say \"hi\"'",)),
        (["trainer.extra.adam_beta2=0.9"], ("++trainer.extra.adam_beta2=0.9",)),
        (["++trainer.extra.adam_beta2=0.9"], ("++trainer.extra.adam_beta2=0.9",)),
        (["preview", "preview.fail_on.truncated=0"], ("++preview.fail_on.truncated=0",)),
        (["dataset.columns.question=frage"], ("++dataset.columns.question=frage",)),
        (["~patch"], ("~patch",)),
    ],
)
def test_words_become_overrides(words, overrides) -> None:
    assert parse(words).overrides == overrides


def test_a_prompt_of_any_characters_arrives_as_typed() -> None:
    for prompt in (
        "two words",
        "a=b, {c} [d] (e)",
        'say "hi"',
        "it's",
        "back\\slash",
        "ends with \\",
        "ünï © 日本",
        "$(x) ${y",
        "100%",
    ):
        composed = compose(parse(["chat", f"chat.prompt={prompt}"]).overrides)
        assert check(composed.cfg, composed.choices).chat.prompt == prompt


def test_a_data_file_or_an_experiment_is_known_by_its_ending(tmp_path) -> None:
    for name in ("a.jsonl", "a.csv.gz", "a.PARQUET", "a.json.zst", "a.yaml", "a.yml"):
        (tmp_path / name).write_text("x")
        command = parse([name])
        assert (command.data or command.file) == tmp_path / name
    with pytest.raises(UserError, match="is neither a verb"):
        parse(["a.docx"])


# ---- options of verbs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", [*VERBS, "audit"])
def test_info_of_a_verb_has_every_option_with_its_default_and_what_it_does(cli, topic: str) -> None:
    said = cli("--info", topic)
    assert (said.code, said.err) == (0, "")
    assert max(map(len, said.out.splitlines())) <= 140
    composed = yaml.safe_load(cli("--cfg", "job").out)
    options = composed.get(topic, {})
    nested = {f"{key}.{name}": value for key in ("search",) for name, value in options.pop(key, {}).items()}
    for key, value in (options | nested).items():
        line = said.out.partition(f"\n  {topic}.{key}: ")[2]
        assert line, f"{topic}.{key}"
        assert yaml.safe_load(line.partition("  ")[0].partition("\n")[0]) == value
        words = line.partition("  ")[2].split()
        assert len(words) > 1, f"{topic}.{key} is not explained"


def test_info_of_a_verb_names_what_it_reads_of_the_top_level(cli) -> None:
    assert "\n  run: null " in cli("--info", "report").out
    assert "\n  resume: null " in cli("--info", "train").out
    assert "\n  run: null " not in cli("--info", "train").out
    assert "Did you mean 'verify'?" in cli("--info", "verfy").err
