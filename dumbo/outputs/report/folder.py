"""Everything of a run's folder that the page tells of, read tolerantly."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dumbo.outputs.report.curves import Measured, measured
from dumbo.outputs.report.reading import Facts, end_of, json_object, text_of, yaml_value
from dumbo.outputs.report.samples import Sample, samples_of
from dumbo.outputs.runs import is_claimed, read_facts
from dumbo.outputs.secrets import USER_INFO

LOG_END = 128 * 2**10
LONGEST_CONFIG = 200_000


@dataclass(frozen=True)
class Folder:
    """What was found.

    Attributes:
        path: the folder.
        facts: run.json.
        words: what was typed (overrides.yaml).
        config: config.yaml; config_text as it stands there.
        experiment: whether the run had an experiment file of its own.
        numbers: metrics.jsonl.
        plan: plan.json, or run.json's `plan`.
        verification, evaluation, export: verify.json, evaluation.json, export.json, where there are such.
        traceback: of a failed run, from dumbo.log.
        faults: what could not be read, in words.
        alive: whether a process holds the folder now.
    """

    path: Path
    facts: Facts
    words: list[str] = field(default_factory=list)
    config: Facts = field(default_factory=Facts)
    config_text: str = ""
    experiment: bool = False
    numbers: Measured = field(default_factory=lambda: Measured({}))
    samples: list[Sample] = field(default_factory=list)
    plan: Facts = field(default_factory=Facts)
    verification: Facts = field(default_factory=Facts)
    evaluation: Facts = field(default_factory=Facts)
    export: Facts = field(default_factory=Facts)
    traceback: str = ""
    faults: list[str] = field(default_factory=list)
    alive: bool = False

    @property
    def status(self) -> str:
        """As run.json has it; "lost" for a run that ended without a word."""
        said = self.facts.text("status") or "unknown"
        return "lost" if said == "running" and not self.alive else said


def read(path: Path) -> Folder:
    """Reads a run's folder.

    Raises:
        UserError: there is a run.json, and it is none.
    """
    facts = Facts(read_facts(path))
    faults: list[str] = []

    def kept(found: tuple[Any, str | None]) -> Any:
        if found[1] is not None:
            faults.append(found[1])
        return found[0]

    numbers = measured(path / "metrics.jsonl")
    config, words = kept(yaml_value(path / "config.yaml")), kept(yaml_value(path / "overrides.yaml"))
    config_text = text_of(path / "config.yaml", LONGEST_CONFIG)[0]
    return Folder(
        path=path,
        facts=facts,
        words=[str(word) for word in words if isinstance(word, str | int | float)] if isinstance(words, list) else [],
        config=Facts(config if isinstance(config, dict) else {}),
        config_text=config_text or "",
        experiment=(path / "experiment.yaml").is_file(),
        numbers=numbers,
        samples=samples_of(kept(text_of(path / "samples.md")) or ""),
        plan=facts.at("plan") or kept(json_object(path / "plan.json")),
        verification=kept(json_object(path / "verify.json")),
        evaluation=kept(json_object(path / "evaluation.json")),
        export=kept(json_object(path / "export.json")),
        traceback=last_traceback(path) if facts.get("error") else "",
        faults=[*numbers.faults, *faults],
        alive=_alive(path),
    )


def last_traceback(path: Path) -> str:
    """The last one in dumbo.log, passwords within addresses masked."""
    blocks = re.split(r"(?m)^.*(?=Traceback \(most recent call last\):)", end_of(path / "dumbo.log", LOG_END))
    if len(blocks) < 2:
        return ""
    lines = blocks[-1].splitlines()
    end = next((n for n, line in enumerate(lines[1:], 1) if line and not line.startswith((" ", "\t"))), len(lines) - 1)
    return USER_INFO.sub("***@", "\n".join(lines[: end + 1]))


def _alive(path: Path) -> bool:
    try:
        return is_claimed(path)
    except OSError:  # a folder that cannot be written: nobody runs in it
        return False
