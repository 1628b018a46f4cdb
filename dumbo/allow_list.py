"""Which classes a `_target_` may name.

Hydra instantiates any importable name; a YAML file from somebody else must not be able to call one. Allowed are

- `dumbo.*`,
- packages that announce a conf folder (entry point group `dumbo.conf`): installing one is trusting it,
- modules that lie under a `--config-dir` typed on the command line.

The prefix is checked before anything is imported, then the resolved object: it must be a class, defined in an
allowed package (an import inside `dumbo` does not make `subprocess` ours), with its group's methods.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from dumbo.errors import UserError
from dumbo.suggest import did_you_mean

ENTRY_POINT_GROUP = "dumbo.conf"


def announced() -> list[EntryPoint]:
    """Installed packages that bring plugins: each entry point's value is the package that holds the YAML files."""
    return list(entry_points(group=ENTRY_POINT_GROUP))


def conf_folders() -> list[Path]:
    """The conf folders of those packages, found without importing more than their parent packages."""
    folders = []
    for point in announced():
        spec = importlib.util.find_spec(point.value)
        places = list(spec.submodule_search_locations or []) if spec else []
        if not places:
            raise UserError(
                f"The installed plugin '{point.name}' announces the conf folder '{point.value}', which it does not "
                f"contain.\n  Reinstall or remove the package (pip uninstall {point.dist.name if point.dist else point.name})."
            )
        folders.append(Path(places[0]))
    return folders


def resolve_class(target: object, methods: Sequence[str], config_dirs: Sequence[Path]) -> type:
    """The class that `target` names.

    Args:
        target: the value of a `_target_` key.
        methods: what the class must have; empty for a class nested in a plugin's node.
        config_dirs: folders typed as `--config-dir`.

    Raises:
        UserError: not text, not allowed, not found, not a class, or without its group's methods.
    """
    if not isinstance(target, str) or "." not in target or not all(part.isidentifier() for part in target.split(".")):
        raise UserError(f"_target_ must be the dotted name of a class (package.module.Class), got {target!r}.")
    top = target.split(".")[0]
    packages = {"dumbo"} | {point.value.split(".")[0] for point in announced()}
    local = None if top in packages else _module_under(top, config_dirs)
    if top not in packages and local is None:
        raise UserError(
            f"_target_ '{target}' is not allowed: it is neither in dumbo, nor in an installed package that announces "
            f"a dumbo.conf folder, nor in a module under a --config-dir typed on the command line."
        )
    cls = _import_class(target)
    if local is not None and not _lies_under(sys.modules[target.rpartition(".")[0]], config_dirs):
        found = getattr(sys.modules[top], "__file__", None) or "another place"
        raise UserError(
            f"_target_ '{target}' means {local}, but Python already has a module '{top}' ({found}).\n"
            f"  Give yours a name of its own: {local.with_stem(f'my_{local.stem}').name}."
        )
    home = cls.__module__.split(".")[0]
    if home not in packages and not _lies_under(sys.modules[cls.__module__], config_dirs):
        raise UserError(
            f"_target_ '{target}' is not allowed: it is only an import of {cls.__module__}.{cls.__qualname__}."
        )
    missing = [name for name in methods if not callable(getattr(cls, name, None))]
    if missing:
        raise UserError(
            f"_target_ '{target}' lacks the method{'s' * (len(missing) > 1)} {', '.join(missing)} of its group."
        )
    return cls


def _module_under(top: str, config_dirs: Sequence[Path]) -> Path | None:
    for folder in config_dirs:
        for candidate in (folder / f"{top}.py", folder / top / "__init__.py", folder / top):
            if candidate.exists() and candidate.suffix in ("", ".py"):
                return candidate
    return None


def _lies_under(module: ModuleType, config_dirs: Sequence[Path]) -> bool:
    """Whether a module was read from one of the folders typed."""
    file = getattr(module, "__file__", None)
    return file is not None and any(Path(file).resolve().is_relative_to(folder) for folder in config_dirs)


def _import_class(target: str) -> type:
    module_name, _, attribute = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UserError(
                f"_target_ '{target}': there is no module '{error.name}'.{_near_module(module_name)}"
            ) from error
        raise UserError(f"_target_ '{target}' needs the package '{error.name}', which is not installed.") from error
    found = getattr(module, attribute, None)
    if found is None:
        raise UserError(
            f"_target_ '{target}': module '{module_name}' has no '{attribute}'.{did_you_mean(attribute, _classes(module.__dict__))}"
        )
    if not isinstance(found, type):
        raise UserError(f"_target_ '{target}' is not a class; a plugin is a class with its group's method.")
    return found


def _classes(names: dict[str, object]) -> Iterable[str]:
    return [name for name, value in names.items() if isinstance(value, type)]


def _near_module(module_name: str) -> str:
    parent_name, _, child = module_name.rpartition(".")
    parent = sys.modules.get(parent_name)
    folders = getattr(parent, "__path__", [])
    siblings = [path.stem for folder in folders for path in Path(folder).glob("*.py")]
    return did_you_mean(child, siblings)
