"""Overrides -> one composed config, through Hydra; its errors said so that a user can act on them.

argv -> refuse.py -> Hydra, over the folders of search_path.py -> hydra_node.py -> check.py; what Hydra raises goes
through explain.py. Hydra's parts are used one by one (hydra._internal; the version is bounded in pyproject.toml).
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dumbo.errors import UserError
from dumbo.explain import FILE_GROUP, explain
from dumbo.groups import LIST_GROUPS
from dumbo.hydra_node import FIXED, key_of, refuse_code
from dumbo.outputs.secrets import mask_in_place
from dumbo.refuse import SWEEP_WANTED, refuse_early
from dumbo.search_path import DumboSearchPath, conf_folder

if TYPE_CHECKING:
    from dumbo.recorded import Repeats


@dataclass
class Composed:
    """A config and what was chosen to make it.

    Attributes:
        cfg: the config without its `hydra` node.
        choices: group -> choice (`hydra.runtime.choices`).
        repeats: the run that this is a repetition of (recorded.py).
    """

    cfg: DictConfig
    choices: dict[str, Any] = field(default_factory=dict)
    repeats: Repeats | None = None


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
        group=FILE_GROUP, name="experiment", node=experiment_of(file), package="_global_", provider=file.name
    )
    return [f"+{FILE_GROUP}=experiment"]


def _forget(folders: Sequence[Path]) -> None:
    """Takes earlier --config-dir folders of this process away, with their modules: another folder may use the names."""
    sys.path[:] = [place for place in sys.path if place not in map(str, folders)]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and any(Path(file).is_relative_to(folder) for folder in folders):
            del sys.modules[name]


def experiment_of(file: Path) -> Any:
    """A YAML file's mapping, references as they are.

    Raises:
        UserError: no YAML, or no mapping.
    """
    try:
        node = OmegaConf.load(file)
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("yaml", "omegaconf"):
            raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
        raise
    if not isinstance(node, DictConfig):
        raise UserError(f"{file} must hold a mapping (keys and values), as the files in conf/experiment do.")
    return OmegaConf.to_container(node)


class CheckedLoader(ConfigLoaderImpl):
    """Hydra's loader of configs; nobody gets one from it, for a run, a sweep or a sweep's job, that runs code.

    Args:
        search_path: where YAML files are found.
        typed: keys set on the command line.
    """

    def __init__(self, search_path: ConfigSearchPath, typed: Collection[str]) -> None:
        super().__init__(search_path)
        self.typed = frozenset(typed)

    def load_configuration(self, *args: Any, **kwargs: Any) -> DictConfig:
        """What Hydra's own does, and then hydra_node.py's look."""
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=r".*provider=.*is not available.*", category=UserWarning)
            # hydra-submitit-launcher has dataclasses of the same names as our files: they check the types.
            warnings.filterwarnings(
                "ignore", message=r"\s*'hydra/launcher/submitit_\w+' is validated against", category=UserWarning
            )
            try:
                cfg = super().load_configuration(*args, **kwargs)
            except KeyError as error:
                raise _unset_variable(error) from error
        refuse_code(cfg, self.typed)
        return cfg


def _unset_variable(error: KeyError) -> Exception:
    """Hydra copies the variables that `hydra.job.env_copy` names while it composes: one that is not set is a KeyError."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or last.tb_frame.f_globals is not vars(os):
        return error
    return UserError(
        f"hydra.job.env_copy cannot be set, and there is no environment variable {error.args[0]}.\n  {FIXED['job.env_copy'][1]}"
    )


def _hydra(overrides: Sequence[str]) -> Hydra:
    """Hydra's application over our folders. `hydra.main` is not used: it builds callbacks before anyone could look."""
    version.setbase("1.3")
    loader = CheckedLoader(create_config_search_path(str(conf_folder())), [key_of(word) for word in overrides])
    return Hydra(task_name="dumbo", config_loader=loader)


def compose(overrides: Sequence[str]) -> Composed:
    """The config of one run.

    Raises:
        UserError: an override or a file that does not compose, or one that would run code (hydra_node.py).
    """
    refuse_early(overrides, multirun=False)
    with translated(overrides):
        cfg = _hydra(overrides).compose_config("config", list(overrides), RunMode.RUN, with_log_configuration=False)
    if cfg.hydra.mode == RunMode.MULTIRUN:
        raise UserError(f"hydra.mode is MULTIRUN: {SWEEP_WANTED}")
    HydraConfig.instance().set_config(cfg)
    return composed_of(cfg)


def show(overrides: Sequence[str], flags: Sequence[str]) -> None:
    """Hydra's own flags that print and do nothing else: `--cfg`, `--info TOPIC`, `--shell-completion`.

    Raises:
        UserError: flags that do not go together.
    """
    chosen = [flag for flag in flags if flag in ("--cfg", "--info", "--shell-completion")]
    if len(chosen) != 1:
        given = " and ".join(chosen) if chosen else f"{flags[0]} alone"
        raise UserError(f"The command line: {given}.\n  Write --cfg job, with --resolve or --package KEY behind it.")
    refuse_early(overrides, multirun=False)
    values = dict(itertools.pairwise(flags))
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    saved = sys.argv  # its first word becomes the command's name in shell completion
    sys.argv = ["dumbo", *flags, *overrides]
    try:
        with translated(overrides):
            hydra, words = _hydra(overrides), list(overrides)
            if "--info" in flags:
                hydra.show_info(values["--info"], config_name="config", overrides=words)
            elif "--shell-completion" in flags:
                hydra.shell_completion(config_name="config", overrides=words)
            else:
                hydra.show_cfg("config", words, values["--cfg"], values.get("--package"), resolve="--resolve" in flags)
    finally:
        sys.argv = saved
        root.handlers[:], root.level = handlers, level  # --info makes Hydra log to what is standard output just now


def sweep(
    overrides: Sequence[str], job: Callable[[DictConfig], Any], begin: Callable[[DictConfig], None] = lambda cfg: None
) -> None:
    """Lets Hydra's sweeper make the jobs (`-m`), and its launcher run them.

    Args:
        overrides: those of the sweep, several values among them.
        job: what a launcher other than ours calls with a job's config.
        begin: called with the config of the words that are not swept, `hydra` in it, before any job is composed.

    Raises:
        UserError: as `compose`, for the sweep or for one of its jobs.
    """
    refuse_early(overrides, multirun=True)
    with translated(overrides):
        hydra = _hydra(overrides)
        words = [*overrides, f"hydra.mode={RunMode.MULTIRUN.name}"]
        cfg = hydra.compose_config("config", words, RunMode.MULTIRUN, with_log_configuration=False)
        begin(cfg)
        sweeper = Plugins.instance().instantiate_sweeper(
            config=cfg,
            hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks()),
            task_function=job,
        )
        arguments = OmegaConf.to_container(cfg.hydra.overrides.task, resolve=False)
        assert isinstance(arguments, list)
        mask_in_place(cfg)  # sweepers write it to multirun.yaml; the jobs are composed anew from the words
        sweeper.sweep(arguments=[str(word) for word in arguments])


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
