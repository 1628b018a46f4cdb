"""Files of a run's folder, which may come from anywhere: nothing in them is trusted to be whole, small or as expected.

metrics.jsonl, run.json, … -> here -> Facts -> tables and curves -> page.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

LARGEST = 32 * 2**20
"""Bytes of a JSON or YAML file that is read whole."""
LARGEST_WHOLE, LARGEST_NUMBER = 2**63, 1e300


@dataclass(frozen=True)
class Facts:
    """A JSON object of unknown shape: what is asked for and is of another kind is not there."""

    values: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.values)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def get(self, *path: str) -> Any:
        """What stands at `path`, of whatever kind; None where there is nothing."""
        node: Any = self.values
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        return node

    def number(self, *path: str) -> float | int | None:
        """A finite number."""
        return as_number(self.get(*path))

    def text(self, *path: str) -> str | None:
        """A text that is not empty, or a number as one."""
        value = self.get(*path)
        if isinstance(value, str):
            return value or None
        number = as_number(value)
        return None if number is None else str(number)

    def at(self, *path: str) -> Facts:
        """An object within; empty where there is none."""
        value = self.get(*path)
        return Facts(value if isinstance(value, Mapping) else {})

    def list(self, *path: str) -> list[Any]:
        """A list within; empty where there is none."""
        value = self.get(*path)
        return value if isinstance(value, list) else []


def as_number(value: Any) -> float | int | None:
    """The value when it is a finite number of usual size."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    usual = abs(value) < (LARGEST_WHOLE if isinstance(value, int) else LARGEST_NUMBER)
    return value if usual and math.isfinite(value) else None


def json_object(file: Path) -> tuple[Facts, str | None]:
    """A file's object, and what is wrong with the file (None: nothing, or it is not there)."""
    text, fault = text_of(file)
    if text is None:
        return Facts(), fault
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return Facts(), f"{file.name} is not whole JSON and is left out"
    if not isinstance(value, dict):
        return Facts(), f"{file.name} holds no JSON object and is left out"
    return Facts(value), None


def yaml_value(file: Path) -> tuple[Any, str | None]:
    """What a YAML file holds, and what is wrong with it."""
    text, fault = text_of(file)
    if text is None:
        return None, fault
    try:
        return yaml.safe_load(text), None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None, f"{file.name} is not whole YAML and is left out"


def text_of(file: Path, most: int = LARGEST) -> tuple[str | None, str | None]:
    """A file as text, bytes that are none replaced; and what is wrong with it."""
    try:
        if not file.is_file():
            return None, None
        if file.stat().st_size > most:
            return None, f"{file.name} is larger than {most / 2**20:.0f} MiB and is left out"
        return file.read_bytes().decode("utf-8", errors="replace"), None
    except OSError as error:
        return None, f"{file.name} cannot be read ({error.strerror})"


def end_of(file: Path, most: int) -> str:
    """The last bytes of a file as text, from the start of a line; empty where there is none."""
    try:
        if not file.is_file():
            return ""
        with file.open("rb") as stream:
            size = file.stat().st_size
            stream.seek(max(0, size - most))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return text if size <= most else text.partition("\n")[2]


def json_lines(file: Path) -> Iterator[Mapping[str, Any] | str]:
    """The objects of metrics.jsonl, a line each; a line that is none ends them, told as a text."""
    try:
        if not file.is_file():
            return
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    yield f"{file.name} is read up to line {number:,}, which is cut off or no JSON"
                    return
                if isinstance(row, dict):
                    yield row
    except OSError as error:
        yield f"{file.name} cannot be read ({error.strerror})"
