"""What a config may say to Hydra itself: nothing that runs code, and nothing that would be passed over.

Hydra builds what `hydra.callbacks` names, and logging.config calls what `hydra.job_logging` names: by that door any
YAML file could run any code before check.py has seen a plugin. So every config that Hydra composes, each job of a
sweep too, comes by here first (the loader in compose.py), before anything in it is built.

Free are hydra.mode, hydra.sweeper (its params among them), hydra.launcher and hydra.searchpath.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dumbo.errors import ConfigError

NO_LOGGING = {"version": 1, "root": None, "disable_existing_loggers": False}
"""Hydra's `none`."""
LOG = "dumbo.log in a run's folder holds everything."
FIXED: dict[str, tuple[Any, str]] = {
    "callbacks": ({}, "Hydra would run the code that they name. Code of your own comes as a plugin: --config-dir=FOLDER."),
    "job_logging": (NO_LOGGING, LOG),
    "hydra_logging": (NO_LOGGING, LOG),
    "verbose": (False, LOG),
    "job.env_set": ({}, "Set environment variables in the shell: NAME=VALUE python -m dumbo …"),
    "job.env_copy": ([], "The jobs of a sweep have the environment already."),
    "job.chdir": (False, "run_dir=FOLDER says where a run writes."),
    "run.dir": (".", "Write run_dir=FOLDER."),
    "sweep.dir": ("${sweep_dir}", "Write sweep_dir=FOLDER."),
    "sweep.subdir": ("${hydra.job.num}", "The runs of a sweep are named for what differs."),
    "output_subdir": (None, "config.yaml and overrides.yaml are in a run's folder."),
}  # fmt: skip
"""Keys below `hydra` that are dumbo's own: the value that conf/config.yaml gives them, and what to do instead."""

HOMES = ("hydra_plugins.", "hydra._internal.core_plugins.")
"""Where launchers and sweepers come from: installed on purpose, as Hydra wants it too."""
SAMPLER = re.compile(r"optuna\.samplers\.\w+Sampler")
"""What a sweeper may build besides itself."""

TYPED_ONLY = {
    "model.trust_remote_code": "code that comes with a model would run",
    "chat.trust_remote_code": "code that comes with a model would run",
    "export.trust_remote_code": "code that comes with a model would run",
    "export.push": "a model would leave this machine",
    "evaluate.tasks_path": "task files can run code",
    "hydra.launcher.setup": "shell commands would run",
    "hydra.launcher.python": "a program would run",
    "hydra.launcher.srun_args": "a shell would get them",
    "hydra.launcher.additional_parameters": "a shell would get them",
}
"""Keys that no file can set, only the command line; and why."""


def key_of(word: str) -> str:
    """The key of an override: `++trainer.lr=1` sets `trainer.lr`."""
    return word.lstrip("+~").partition("=")[0]


def refuse_code(cfg: DictConfig, typed: Collection[str]) -> None:
    """Looks through a composed config, `hydra` in it, before anything of it is used.

    Args:
        cfg: as Hydra composed it.
        typed: keys set on the command line.

    Raises:
        ConfigError: with every fault found.
    """
    raw = OmegaConf.to_container(cfg.hydra, resolve=False)
    faults = [
        f"hydra.{key} cannot be set, got {_shown(found)}.\n  {instead}"
        for key, (value, instead) in FIXED.items()
        if (found := _at(raw, key)) != value
    ]
    for name in ("launcher", "sweeper"):
        faults += _plugin(f"hydra.{name}", cfg.hydra, name)
    faults += _params(_at(raw, "sweeper.params"))
    for key, why in TYPED_ONLY.items():
        if key not in typed and _is_set(cfg, key):
            faults.append(f"{key}: a file sets it, and {why}.\n  Type it on the command line if you trust it: {key}=…")
    if faults:
        raise ConfigError(faults)


def _at(node: Any, key: str) -> Any:
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _is_set(cfg: DictConfig, key: str) -> bool:
    """Whether a key holds anything but nothing; a reference that leads nowhere counts (where it leads may change)."""
    node: Any = cfg
    try:
        for part in key.split("."):
            if not isinstance(node, DictConfig) or part not in node:
                return False
            node = node[part]
    except OmegaConfBaseException:
        return True
    return bool(node)


def _plugin(path: str, parent: DictConfig, key: str) -> list[str]:
    """Faults of what Hydra builds when a sweep begins: a class that is none of Hydra's plugins, or one inside it."""
    faults = []
    try:
        for place, target in _targets(path, parent, key):
            if not isinstance(target, str) or "${" in target:
                allowed = False
            elif place == path:
                allowed = target.startswith(HOMES)
            else:
                allowed = path == "hydra.sweeper" and SAMPLER.fullmatch(target) is not None
            if not allowed:
                faults.append(
                    f"{place}._target_ '{target}' is not allowed.\n"
                    f"  Choose an installed plugin of Hydra: {path.replace('.', '/')}=NAME"
                )
    except OmegaConfBaseException as error:
        faults.append(f"{path} cannot be resolved: {str(error).splitlines()[0]}.")
    return faults


def _targets(path: str, parent: DictConfig | ListConfig, key: Any) -> Iterator[tuple[str, Any]]:
    """Every `_target_` in a node, with its place, references to other nodes followed."""
    if OmegaConf.is_missing(parent, key):
        return
    node = parent[key]
    if isinstance(node, dict | list):  # what a resolver gives (oc.decode)
        node = OmegaConf.create(node)
    if isinstance(node, DictConfig) and not node._is_none():
        for name in node:
            if name == "_target_":
                yield path, _raw(node)["_target_"]
            else:
                yield from _targets(f"{path}.{name!s}", node, name)
    elif isinstance(node, ListConfig) and not node._is_none():
        for index in range(len(node)):
            yield from _targets(f"{path}.{index}", node, index)


def _raw(node: DictConfig) -> Any:
    return OmegaConf.to_container(node, resolve=False)


def _params(params: Any) -> Sequence[str]:
    """Faults of hydra.sweeper.params: they become words of the command line, and must not do what files may not."""
    names = [str(name) for name in params] if isinstance(params, dict) else []
    return [
        f"hydra.sweeper.params: '{name}' cannot be swept from a file.\n  Type it on the command line: {name}=…"
        for name in names
        if key_of(name) in TYPED_ONLY or re.match(r"[+~\s]*(hydra\b|-)", name)
    ]
