"""Every YAML file in conf/ composes and binds, and holds exactly its constructor's arguments."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from dumbo.allow_list import resolve_class
from dumbo.check import check
from dumbo.compose import compose, prepare_hydra
from dumbo.errors import ConfigError
from dumbo.groups import GROUPS, LIST_GROUPS
from dumbo.options import SECTIONS, Options
from dumbo.search_path import conf_folder

CONF = conf_folder()
FILES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
CHOICES = {
    "model": "tiny smollm smollm_gguf smollm_360m smollm_1_7b smollm3_3b tinystories_1m llama3_1b llama3_8b qwen3_0_6b "
    "qwen3_8b gemma3_1b mistral_7b pretrained",
    "patch": "liger lora gradient_checkpointing freeze compile chunked_loss",
    "dataset": "quiz alpaca gsm8k files hub",
    "formatter": "chat jinja completion text",
    "trainer": "sft",
    "tracker": "none tensorboard wandb mlflow trackio",
}
"""What product.md promises."""
NEEDED = {
    ("dataset", "files"): ["dataset.path=rows.jsonl"],
    ("dataset", "hub"): ["dataset.path=some/rows"],
    ("model", "pretrained"): ["model.path=some/model"],
    ("formatter", "jinja"): ["formatter.template='{{ messages }}'"],
    ("patch", "freeze"): ["patch.freeze.train=[norm]"],
}
"""What a choice cannot do without."""


BESIDE = {("patch", "fused_lora"): "lora,"}
"""What a choice of a list cannot be without."""


def _choose(group: str, name: str) -> list[str]:
    beside = BESIDE.get((group, name), "")
    return [f"{group}=[{beside}{name}]" if group in LIST_GROUPS else f"{group}={name}", *NEEDED.get((group, name), [])]


def _yaml(group: str, name: str) -> dict[str, object]:
    return yaml.safe_load((CONF / group / f"{name}.yaml").read_text())


def test_every_promised_choice_is_there() -> None:
    for group, names in CHOICES.items():
        assert {name for of, name in FILES if of == group} >= set(names.split()), group


@contextmanager
def _extras_may_lack() -> Iterator[None]:
    """An extra that this environment lacks is no fault of the YAML."""
    try:
        yield
    except ConfigError as error:
        if not all("not installed" in fault for fault in error.faults):
            raise


@pytest.mark.parametrize(("group", "name"), FILES)
def test_composes_and_binds(group: str, name: str) -> None:
    Path("rows.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    composed = compose(_choose(group, name))
    node = composed.cfg[group][name] if group in LIST_GROUPS else composed.cfg[group]
    assert node["_target_"] == _yaml(group, name)["_target_"]
    with _extras_may_lack():
        plugins = check(composed.cfg, composed.choices)
        built = getattr(plugins, {"patch": "patches", "tracker": "trackers"}.get(group, group))
        built = built[name] if group in LIST_GROUPS else built
        assert type(built).__module__ + "." + type(built).__qualname__ == node["_target_"]


def keys_and_defaults(node: dict[str, object], methods: tuple[str, ...]) -> list[str]:
    """How a YAML node and its class differ: a key that the other lacks."""
    cls = resolve_class(node["_target_"], methods, ())
    has = set(node) - {"_target_"}
    takes = {name for name, p in inspect.signature(cls).parameters.items() if p.kind is not p.VAR_KEYWORD}
    faults = [f"{key} is no argument of {cls.__name__}" for key in has - takes]
    faults += [f"{key} of {cls.__name__} is not in the YAML" for key in takes - has]
    for value in node.values():
        if isinstance(value, dict) and "_target_" in value:
            faults += keys_and_defaults(value, ())
    return faults


@pytest.mark.parametrize(("group", "name"), FILES)
def test_the_keys_are_exactly_the_constructors_arguments(group: str, name: str) -> None:
    assert keys_and_defaults(_yaml(group, name), GROUPS[group]) == []


def test_a_key_on_one_side_only_is_found() -> None:
    node = _yaml("patch", "lora")
    del node["alpha"]
    node["alhpa"] = 1
    assert keys_and_defaults(node, ("apply",)) == ["alhpa is no argument of LoRA", "alpha of LoRA is not in the YAML"]


ONE_YAML_A_CLASS = [(g, n) for g, n in FILES if g in ("trainer", "patch", "formatter", "launch", "tracker")]
ONE_YAML_A_CLASS += [
    ("model", "tiny"),
    ("model", "pretrained"),
    ("dataset", "files"),
    ("dataset", "hub"),
    ("dataset", "quiz"),
]


@pytest.mark.parametrize(("group", "name"), ONE_YAML_A_CLASS)
def test_the_defaults_are_the_same_in_the_yaml_and_in_the_class(group: str, name: str) -> None:
    """Where a class has one YAML file, or a plain one: what `dumbo` does is what `Class()` does."""
    stated = _yaml(group, name)
    cls = resolve_class(stated["_target_"], GROUPS[group], ())
    for field in dataclasses.fields(cls):
        if not field.init or stated[field.name] == "???":
            continue
        default = (
            field.default
            if field.default is not dataclasses.MISSING
            else (field.default_factory() if field.default_factory is not dataclasses.MISSING else dataclasses.MISSING)
        )
        if default is dataclasses.MISSING:
            continue
        written = stated[field.name]
        if isinstance(written, dict) and "_target_" in written:
            written = {key: value for key, value in written.items() if key != "_target_"}
            default = dataclasses.asdict(default)
        if isinstance(written, str) and isinstance(default, float):
            written = float(written)  # 1e-4 is text to plain PyYAML, a number to OmegaConf
        assert written == default, f"{group}/{name}.yaml: {field.name}"


def test_the_top_of_the_config_is_its_options() -> None:
    stated = yaml.safe_load((CONF / "config.yaml").read_text())
    own = set(stated) - {"defaults", "hydra", *GROUPS}
    assert own == {*SECTIONS, *(field.name for field in dataclasses.fields(Options))}
    for name, cls in SECTIONS.items():
        assert stated[name] == dataclasses.asdict(cls()), name
    assert all(stated[field.name] == field.default for field in dataclasses.fields(Options))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_binds(name: str) -> None:
    Path("input.txt").write_text("To be, or not to be\n")
    data = [] if name.startswith("search_") else ["dataset.path=input.txt"]  # a search takes any data
    composed = compose([f"+experiment={name}", *data])
    assert check(composed.cfg, composed.choices).trainer.lr > 0


def test_every_file_says_what_it_is() -> None:
    for group, name in FILES:
        lines = (CONF / group / f"{name}.yaml").read_text().splitlines()
        if group in LIST_GROUPS:
            assert lines.pop(0) == f"# @package {group}.{name}"
        assert lines[0].startswith("# "), f"{group}/{name}"
        assert len(lines[0]) > 20, f"{group}/{name}"


# ---- precedence -----------------------------------------------------------------------------------------------------


def test_precedence_group_defaults_then_experiment_then_command_line(tmp_path) -> None:
    default = compose(["model=smollm"]).cfg.trainer
    assert (default.lr, default.global_batch_size) == (1e-4, 16)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "experiment").mkdir()
    (tmp_path / "my" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: smollm\n  - override /patch: [lora]\n"
        "trainer:\n  lr: 3e-3\n  global_batch_size: 64\npatch:\n  lora:\n    rank: 4\n"
    )

    try:
        prepare_hydra([tmp_path / "my"], None)
        cfg = compose(["+experiment=mine", "trainer.lr=5e-5"]).cfg
        assert (cfg.trainer.lr, cfg.trainer.global_batch_size, cfg.patch.lora.rank) == (5e-5, 64, 4)
        assert cfg.model.path == "HuggingFaceTB/SmolLM2-135M"
        assert compose(["+experiment=mine", "patch.lora.rank=8"]).cfg.patch.lora.rank == 8
        assert compose(["patch.lora.rank=8", "+experiment=mine"]).cfg.patch.lora.rank == 8, "not by typing order"
        assert list(compose(["+experiment=mine", "patch=[]"]).cfg.patch) == []
        assert list(compose(["+experiment=mine", "patch=[liger]"]).cfg.patch) == ["liger"]
        leftover = compose(["+experiment=mine", "patch=[]", "+patch.lora.alpha=1"])
        with pytest.raises(ConfigError, match=r"patch\.lora has no _target_"):  # typed, so it was meant
            check(leftover.cfg, leftover.choices)
        assert compose(["+experiment=mine", "model=tiny"]).cfg.model._target_ == "dumbo.model.tiny.Tiny"
    finally:
        prepare_hydra([], None)


def test_a_file_as_first_word_is_an_experiment(cli, tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults:\n  - override /formatter: text\ntrainer:\n  lr: 3e-3\n  seed: 7\n")
    said = cli("mine.yaml", "trainer.seed=8", "--cfg", "job")
    assert said.code == 0
    cfg = yaml.safe_load(said.out)
    assert (float(cfg["trainer"]["lr"]), cfg["trainer"]["seed"]) == (0.003, 8)
    assert cfg["formatter"]["_target_"] == "dumbo.formatter.text.Text"


def test_what_suits_the_tiny_model_is_not_left_behind_for_others() -> None:
    assert compose([]).cfg.trainer.lr == 1e-3
    assert compose(["model=smollm"]).cfg.trainer.lr == 1e-4
    assert compose(["trainer.lr=7e-4"]).cfg.trainer.lr == 7e-4


# ---- the list of patches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], []),
        (["patch=[liger,lora]"], ["liger", "lora"]),
        (["patch=[lora,liger]"], ["lora", "liger"]),
        (["patch=lora"], ["lora"]),
        (["patch=[]"], []),
        (["~patch"], []),
        (["patch=[lora,lora]"], ["lora"]),
        (["patch=[lora]", "patch=[liger]"], ["liger"]),
    ],
)
def test_lists_of_patches(words, names) -> None:
    assert list(compose(words).cfg.patch) == names


def test_the_order_of_patches_comes_from_their_stages() -> None:
    from dumbo.patch.order import in_order

    orders = []
    for words in (
        "[gradient_checkpointing,lora,liger]",
        "[liger,lora,gradient_checkpointing]",
        "[lora,gradient_checkpointing,liger]",
    ):
        composed = compose([f"patch={words}"])
        orders.append(list(in_order(check(composed.cfg, composed.choices).patches)))
    assert orders == [["liger", "lora", "gradient_checkpointing"]] * 3


def test_a_patch_key_reaches_its_patch() -> None:
    composed = compose(["patch=lora", "patch.lora.rank=8", "patch.lora.target_modules=[q_proj,v_proj]"])
    lora = check(composed.cfg, composed.choices).patches["lora"]
    assert (lora.rank, lora.target_modules) == (8, ["q_proj", "v_proj"])
