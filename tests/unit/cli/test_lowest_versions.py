"""`.ci/lowest.txt` is what pyproject.toml promises: the lowest version of everything that is installed for the tests."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[3]


def _lower_bounds() -> dict[str, Version]:
    """Package -> its lower bound, for `pip install -e '.[test]'`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = list(project["dependencies"])
    wanted = ["test"]
    while wanted:
        for line in extras[wanted.pop()]:
            if found := re.fullmatch(r"dumbo\[(.+)\]", line):
                wanted += found.group(1).split(",")
            else:
                lines.append(line)
    bounds = {}
    for requirement in map(Requirement, lines):
        [lower] = [spec.version for spec in requirement.specifier if spec.operator == ">="]
        bounds[requirement.name] = Version(lower)
    return bounds


def test_every_pin_is_the_lower_bound_of_pyproject() -> None:
    lines = [line for line in (ROOT / ".ci" / "lowest.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {name: Version(version) for name, version in (line.split("==") for line in lines)}
    bounds = _lower_bounds()
    assert bounds.pop("torch") == Version("2.11"), "torch's own lower bound is run on a GPU machine"
    assert pins == bounds
