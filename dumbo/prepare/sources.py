"""The code that a class runs, as files: part of the key of prepared data, so that changed code prepares anew.

For a user's formatter that is the file of the class, those of the classes it inherits from, and what these import
from the same folder or package. Imports are read from the source: modules imported inside a function count too.
Other installed libraries do not count; the versions that matter are in the key by themselves. Nor do dumbo's own
files: which of them matter is known (`fingerprints.py`).
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

DUMBO = Path(__file__).resolve().parent.parent


def source_files(kind: type) -> list[Path]:
    """The files that a class and its parents come from, and those these import from beside them, sorted."""
    found: set[Path] = set()
    for parent in kind.__mro__:
        file = _file_of(parent)
        if file is None or file in found or _has_a_version(file):
            continue
        name = parent.__module__ if parent.__module__ != "__main__" else file.stem
        left = [(file, name)]
        root = _root(file, name)
        top = name.split(".")[0] if _is_library_folder(root) else None
        while left:
            file, name = left.pop()
            if file in found or _has_a_version(file):
                continue
            found.add(file)
            left += [
                (path, module) for module, path in _imports(file, name, root) if top in (None, module.split(".")[0])
            ]
    return sorted(found)


def code_without_file(kind: type) -> list[str]:
    """The compiled methods of a class, and of its parents, that no file holds: typed into a notebook."""
    typed = [parent for parent in kind.__mro__ if parent is not object and _file_of(parent) is None]
    return [f"{parent.__qualname__} {line}" for parent in typed for line in _code_of(parent)]


def _file_of(kind: type) -> Path | None:
    """The file that a class is written in; None for one typed into a notebook or built into Python."""
    try:
        file = inspect.getsourcefile(kind)
    except (TypeError, OSError):
        return None
    return Path(file).resolve() if file is not None and Path(file).is_file() else None


def _root(file: Path, module: str) -> Path:
    """The folder from which a module's name leads to its file."""
    levels = module.count(".") + (file.name == "__init__.py")
    return file.parents[min(levels, len(file.parents) - 1)]


def _is_library_folder(folder: Path) -> bool:
    return folder.name in ("site-packages", "dist-packages")


def _has_a_version(file: Path) -> bool:
    """Whether a file is Python's own or dumbo's own."""
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    pythons = file.is_relative_to(standard) and not any(_is_library_folder(folder) for folder in file.parents)
    return pythons or file.is_relative_to(DUMBO)


def _imports(file: Path, module: str, root: Path) -> Iterator[tuple[str, Path]]:
    """(module name, file) of what a source imports and that lies below `root`."""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            before = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*before, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" if base else alias.name for alias in node.names)]
        for name in names:
            parts = name.split(".") if name else []
            for depth in range(1, len(parts) + 1):  # a package's own __init__ runs before its modules
                path = root.joinpath(*parts[:depth])
                for candidate in (path.with_name(path.name + ".py"), path / "__init__.py"):
                    if candidate.is_file():
                        yield ".".join(parts[:depth]), candidate.resolve()


def _code_of(kind: type) -> list[str]:
    methods = sorted((name, value.__code__) for name, value in vars(kind).items() if inspect.isfunction(value))
    return [f"{name} {_compiled(code)}" for name, code in methods]


def _compiled(code: CodeType) -> str:
    constants = [_compiled(part) if isinstance(part, CodeType) else repr(part) for part in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"
