"""Overrides -> one composed config, through Hydra; its errors said so that a user can act on them.

`conf/` is found beside the package (installed: dumbo/conf; in a clone: ../conf). A user's `--config-dir` comes
before it in the search path, so that it may shadow a shipped choice; folders that installed packages announce
(entry point group `dumbo.conf`) come after.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import hydra
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dumbo.allow_list import conf_folders
from dumbo.check import GROUPS, LIST_GROUPS, SECTIONS, unknown_key
from dumbo.errors import UserError
from dumbo.suggest import did_you_mean

FILE_GROUP = "from_file"
"""The group under which FILE.yaml of the command line is stored."""


def conf_folder() -> Path:
    """The folder of the shipped YAML files."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise RuntimeError(f"dumbo is installed without its conf folder (looked beside {here}); install it again")


class DumboSearchPath(SearchPathPlugin):
    """Adds users' folders before `main` and announced packages' folders after it."""

    config_dirs: ClassVar[tuple[Path, ...]] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if not any(
            element.provider == "main" and element.path == str(conf_folder()) for element in search_path.get_path()
        ):
            return  # another Hydra program in this process
        for folder in reversed(self.config_dirs):
            search_path.prepend("config-dir", f"file://{folder}", anchor=SearchPathQuery("main"))
        for folder in conf_folders():
            search_path.append("dumbo.conf", f"file://{folder}")


@dataclass
class Composed:
    """A config and what was chosen to make it.

    Attributes:
        cfg: the config without its `hydra` node.
        choices: group -> choice (`hydra.runtime.choices`).
    """

    cfg: DictConfig
    choices: dict[str, Any] = field(default_factory=dict)


def composed_of(cfg: DictConfig) -> Composed:
    """What Hydra composed, as it hands it to a job; `HydraConfig` knows the choices."""
    choices = OmegaConf.to_container(HydraConfig.get().runtime.choices)
    assert isinstance(choices, dict)
    job = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    OmegaConf.set_struct(job, True)
    return Composed(job, {str(key): value for key, value in choices.items()})


def refuse_early(overrides: Sequence[str]) -> None:
    """What Hydra accepts, or answers with a traceback, and nobody means.

    Raises:
        UserError: a list for a group of one choice, a group set to null or taken away, `+` before a group.
    """
    for word in overrides:
        key, _, value = word.partition("=")
        group = key.lstrip("+~")
        if group == "experiment" and not key.startswith("+"):
            raise UserError(f"experiment is chosen on top of the rest: write +experiment={value or 'NAME'}.")
        if group not in GROUPS:
            continue
        listed = group in LIST_GROUPS
        if value == "null" or (value == "" and "=" in word):
            raise UserError(
                f"{group} cannot be {value or 'empty'}.\n  Write "
                + (f"{group}=[] for none." if listed else f"{group}=NAME (dumbo --info {group}).")
            )
        if key.startswith("~") and not listed:
            raise UserError(f"~{group}: a run needs a {group}. Write {group}=NAME (dumbo --info {group}).")
        if key.startswith("+"):
            raise UserError(f"{key}: every config has a {group} already. Leave out the '+': {group}={value}")
        if value.startswith("[") and not listed and "],[" not in value.replace(" ", ""):
            first = value.strip("[] ").split(",")[0].strip()
            several = (
                " Several files go into one: dataset=files dataset.path=[a.jsonl,b.jsonl]."
                if group == "dataset"
                else ""
            )
            raise UserError(f"{group} takes one choice, got the list {value}.\n  Write {group}={first}.{several}")


def prepare_hydra(config_dirs: Sequence[Path], file: Path | None) -> list[str]:
    """Makes user folders and FILE.yaml known to Hydra; returns the overrides that choose them."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us; we say them in the user's words
    DumboSearchPath.config_dirs = tuple(config_dirs)
    for folder in config_dirs:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    Plugins.instance().register(DumboSearchPath)
    if file is None:
        return []
    ConfigStore.instance().store(
        group=FILE_GROUP, name="experiment", node=_load_experiment(file), package="_global_", provider=file.name
    )
    return [f"+{FILE_GROUP}=experiment"]


def _load_experiment(file: Path) -> Any:
    try:
        node = OmegaConf.load(file)
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("yaml", "omegaconf"):
            raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
        raise
    if not isinstance(node, DictConfig):
        raise UserError(f"{file} must hold a mapping (keys and values), as the files in conf/experiment do.")
    return OmegaConf.to_container(node)


def run_hydra(
    overrides: Sequence[str], flags: Sequence[str], job: Callable[[DictConfig], Any], *, multirun: bool
) -> None:
    """Lets Hydra's own entry point compose, or show (`--cfg`), or sweep (`-m`), and call `job` with the config."""
    refuse_early(overrides)
    saved = sys.argv
    sys.argv = [saved[0], *flags, *(["--multirun"] if multirun else []), *overrides]
    try:
        with translated(overrides), warnings.catch_warnings():
            warnings.filterwarnings("error", message=r".*provider=.*is not available.*", category=UserWarning)
            hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(job)()
    finally:
        sys.argv = saved


def compose(overrides: Sequence[str]) -> Composed:
    """Composes without the command line (`dumbo.run`, repeat, tests)."""
    refuse_early(overrides)
    with translated(overrides), hydra.initialize_config_dir(str(conf_folder()), job_name="dumbo", version_base="1.3"):
        cfg = hydra.compose("config", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return composed_of(cfg)


class translated:
    """Context: what Hydra and OmegaConf raise while composing becomes a UserError."""

    def __init__(self, overrides: Sequence[str]) -> None:
        self.overrides = overrides

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, UserError) or error is None:
            return
        if isinstance(error, HydraException | OmegaConfBaseException | UserWarning):
            raise UserError(explain(error, self.overrides)) from error


def explain(error: BaseException, overrides: Sequence[str]) -> str:
    """One clear text for an error of composing: what was set, what there is, the nearest valid name."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    missing = next((link for link in chain if isinstance(link, MissingConfigException)), None)
    if missing is not None and missing.missing_cfg_file:
        return _explain_missing(missing)
    if isinstance(error, UserWarning):
        where = re.search(r"path=(\S+)", str(error))
        return f"hydra.searchpath: there is no folder '{where.group(1) if where else error}'."
    first = str(error).strip()
    if found := re.search(r"Could not override '([^']+)'", first):
        return _explain_key(found.group(1), chain, overrides)
    if found := re.search(r"Could not append to config\. An item is already at '([^']+)'", first):
        return f"'{found.group(1)}' exists already: leave out the '+'."
    if found := re.search(r"Could not delete from config\. '([^']+)' does not exist", first):
        return f"~{found.group(1)}: there is nothing of that name to take away."
    if "No match in the defaults list" in first or "Could not override '" in first:
        name = re.search(r"'([^']+)'", first)
        return _explain_group(name.group(1) if name else "", first)
    if (
        "Viable" in first
        or "mismatched input" in first
        or "no viable alternative" in first
        or "token recognition" in first
        or "extraneous input" in first
    ):
        return _explain_grammar(first, overrides)
    return first.splitlines()[0]


def _explain_missing(error: MissingConfigException) -> str:
    path = str(error.missing_cfg_file)
    group, _, name = path.rpartition("/")
    if not group:
        return f"There is no config '{path}'."
    if group == FILE_GROUP:
        return f"There is no experiment file '{name}'."
    options = sorted(error.options or choices_of(group))
    if not options:
        return f"There is no group '{group}'.{did_you_mean(group, GROUPS)}\n  groups: {', '.join(GROUPS)}"
    if (group, name) in LATER:
        return f"{group}={name} is not built yet.\n  choices of {group}: {', '.join(options)}"
    return f"{group} has no choice '{name}'.{did_you_mean(name, options)}\n  choices of {group}: {', '.join(options)}"


LATER = (
    {("patch", n) for n in ("varlen", "compile", "qlora", "neftune")}
    | {("trainer", n) for n in ("dpo", "kto", "orpo", "simpo", "grpo", "reward")}
    | {("launch", n) for n in ("auto", "ddp", "fsdp")}
    | {("dataset", "mixture")}
)


def choices_of(group: str) -> list[str]:
    """The names of a group's YAML files: shipped, in `--config-dir` folders, announced by packages."""
    folders = [*DumboSearchPath.config_dirs, conf_folder(), *conf_folders()]
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def _explain_key(key: str, chain: Sequence[BaseException], overrides: Sequence[str]) -> str:
    head, _, last = key.rpartition(".")
    group = key.split(".")[0]
    if group in LIST_GROUPS and "." in key:
        name = key.split(".")[1]
        if name in choices_of(group) and not any(_has(link, f"{group}.{name}") for link in chain):
            swept = any(o.startswith(f"{group}=") and ("],[" in o or "choice(" in o) for o in overrides)
            note = (
                f"\n  In a sweep over {group} itself, write {key}=choice(…): a fixed value is set before the choices are."
                if swept
                else ""
            )
            return f"{key} is set, but {group}.{name} was not chosen.\n  Write {group}=[{name}] {key}=…{note}"
        if not any(_has(link, f"{group}.{name}") for link in chain):
            return f"{group} has no choice '{name}'.{did_you_mean(name, choices_of(group))}\n  choices of {group}: {', '.join(choices_of(group))}"
    root = next((r for r in (_root(link) for link in chain) if r is not None), None)
    node = OmegaConf.select(root, head) if root is not None and head else root
    valid = [str(k) for k in node if str(k) not in ("hydra", "_target_")] if isinstance(node, DictConfig) else []
    if not valid and head and root is not None:
        parent, _, child = head.rpartition(".")
        above = OmegaConf.select(root, parent) if parent else root
        if isinstance(above, DictConfig) and child not in above:
            valid_above = [str(k) for k in above if str(k) not in ("hydra", "_target_")]
            return unknown_key(parent, child, valid_above)
        return f"{key} cannot be set: {head} has no keys of its own."
    if not head:
        valid = [*GROUPS, *SECTIONS, *[v for v in valid if v not in GROUPS and v not in SECTIONS]]
    return unknown_key(head, last, valid)


def _has(error: BaseException, key: str) -> bool:
    root = _root(error)
    return root is not None and OmegaConf.select(root, key) is not None


def _root(error: BaseException) -> Any:
    parent = getattr(error, "parent_node", None)
    return parent._get_root() if parent is not None else None


def _explain_group(name: str, text: str) -> str:
    if name in GROUPS:
        return text.splitlines()[0]
    return (
        f"There is no group or key '{name}'.{did_you_mean(name, [*GROUPS, *SECTIONS])}\n  groups: {', '.join(GROUPS)}"
    )


def _explain_grammar(text: str, overrides: Sequence[str]) -> str:
    word = next((o for o in overrides if o and o in text), None)
    said = f"The override {word} cannot be read" if word else "An override cannot be read"
    reason = text.splitlines()[0].removeprefix("LexerNoViableAltException: ").strip()
    return (
        f"{said}: {reason}.\n"
        "  Values with special characters need quotes inside quotes: 'dataset.path=\"a b.jsonl\"'; lists are [a,b] without spaces."
    )
