"""Overrides -> one composed config, through Hydra; its errors said so that a user can act on them.

argv -> refuse.py -> Hydra, over the folders of search_path.py -> check.py; what Hydra raises goes through explain.py.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dumbo.check import LIST_GROUPS
from dumbo.errors import UserError
from dumbo.explain import FILE_GROUP, explain
from dumbo.refuse import refuse_early
from dumbo.search_path import DumboSearchPath, conf_folder


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
    typed = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)  # they may hold ${…}
    assert isinstance(typed, list)
    _drop_keys_of_unchosen(job, [str(word) for word in typed])
    OmegaConf.set_struct(job, True)
    return Composed(job, {str(key): value for key, value in choices.items()})


def _drop_keys_of_unchosen(job: DictConfig, words: Sequence[str]) -> None:
    """`patch=[]` typed over an experiment that sets patch.lora.rank takes those keys away with the patch.

    Without `patch=` on the command line, or with a key of that patch there too, they stay: check.py refuses them.
    """
    keys = [word.lstrip("+~").partition("=")[0] for word in words]
    for group in LIST_GROUPS:
        node = job.get(group)
        if group not in keys or not isinstance(node, DictConfig):
            continue
        for name in [str(name) for name in node]:
            child = node[name]
            typed = any(key == f"{group}.{name}" or key.startswith(f"{group}.{name}.") for key in keys)
            if isinstance(child, DictConfig) and "_target_" not in child and not typed:
                OmegaConf.set_struct(node, False)
                del node[name]


def prepare_hydra(config_dirs: Sequence[Path], file: Path | None) -> list[str]:
    """Makes user folders and FILE.yaml known to Hydra; returns the overrides that choose them."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us; we say them in the user's words
    _forget([folder for folder in DumboSearchPath.config_dirs if folder not in config_dirs])
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


def _forget(folders: Sequence[Path]) -> None:
    """Takes earlier --config-dir folders of this process away, with their modules: another folder may use the names."""
    sys.path[:] = [place for place in sys.path if place not in map(str, folders)]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and any(Path(file).is_relative_to(folder) for folder in folders):
            del sys.modules[name]


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
    refuse_early(overrides, multirun=multirun)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    saved = sys.argv  # its first word becomes the command's name in shell completion
    sys.argv = ["dumbo", *flags, *(["--multirun"] if multirun else []), *overrides]
    try:
        with translated(overrides), warnings.catch_warnings():
            warnings.filterwarnings("error", message=r".*provider=.*is not available.*", category=UserWarning)
            hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(job)()
    finally:
        sys.argv = saved
        root.handlers[:], root.level = handlers, level  # --info makes Hydra log to what is standard output just now


def compose(overrides: Sequence[str]) -> Composed:
    """Composes without the command line (`dumbo.run`, repeat, tests)."""
    refuse_early(overrides, multirun=False)
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
