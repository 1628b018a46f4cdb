"""Where YAML files are found: users' folders, then conf/, then what installed packages announce.

`conf/` lies beside the package (installed: dumbo/conf; in a clone: ../conf). A `--config-dir` comes before it, so
that it may shadow a shipped choice; folders that installed packages announce (entry point group `dumbo.conf`) come
after.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.plugins.search_path_plugin import SearchPathPlugin

from dumbo.allow_list import conf_folders


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


def files_of(group: str) -> dict[str, Path]:
    """Choice -> its YAML file, for every choice of a group; where two have one name, the one that Hydra takes."""
    folders = [*DumboSearchPath.config_dirs, conf_folder(), *conf_folders()]
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted((folder / group).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def choices_of(group: str) -> list[str]:
    """The names of a group's choices."""
    return sorted(files_of(group))
