"""Where an evaluation's results go: into the run's folder; for any other model into a fresh folder under outputs/."""

from __future__ import annotations

import json
import os
import secrets as random_source
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import dumbo
from dumbo.errors import UserError
from dumbo.outputs.console import Console
from dumbo.outputs.numbers import finite
from dumbo.outputs.places import now, short
from dumbo.outputs.report.write import report_on
from dumbo.outputs.run_dir import RunDir
from dumbo.outputs.runs import find_run, is_claimed, read_facts, without_model
from dumbo.outputs.secrets import masked, masked_words
from dumbo.outputs.whole_file import keep_earlier

if TYPE_CHECKING:
    from dumbo.check import Plugins
    from dumbo.command import Command
    from dumbo.compose import Composed

FILE = "evaluation.json"
IN_RUN_JSON = ("loss", "perplexity", "exact_match", "questions", "extractor", "tasks")
"""What of the results stands in run.json too."""


@dataclass(frozen=True)
class Place:
    """A folder for results.

    Attributes:
        folder: where they go.
        run: the run whose model is evaluated; None for another model.
        asks_data: whether held-out data is asked, or tasks alone.
        typed: files for a fresh folder that say what was typed.
    """

    folder: Path
    run: Path | None
    asks_data: bool
    typed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, plugins: Plugins, composed: Composed, command: Command) -> Place:
        """The place for what was typed.

        Raises:
            UserError: no model or no data was named, a run without a model, a folder that is not free.
        """
        options = plugins.options
        if options.run is not None:
            run = find_run(options.run)
            return cls(_trained(run, options.run_dir), run, asks_data=True)
        keys = {word.lstrip("+~").partition("=")[0] for word in command.overrides}
        if not keys & {"model", "experiment"}:
            raise UserError(
                "What should be evaluated? Write run=last, run=FOLDER (a run's, or a model's in Hugging Face's format),\n"
                "  or a model: model=pretrained model.path=HUB_ID_OR_FOLDER"
            )
        asks_data = bool(keys & {"dataset", "experiment"})
        if not asks_data and not plugins.evaluate.tasks:
            raise UserError(
                "What should it be asked? Write dataset=NAME, or evaluate.tasks=[NAME] (of lm-eval).\n"
                "  dataset=files dataset.path=rows.jsonl dataset.eval_path=held_out.jsonl for rows of your own"
            )
        name = str(getattr(plugins.model, "name", composed.choices.get("model", "model")))
        files = {
            "config.yaml": yaml.safe_dump(masked(composed.cfg), sort_keys=False, allow_unicode=True),
            "overrides.yaml": yaml.safe_dump(masked_words(command.typed), allow_unicode=True),
        }
        return cls(_fresh(options.run_dir, name), None, asks_data, files)

    def title(self) -> str:
        """The first line that is shown."""
        return f"{f'dumbo {dumbo.__version__}   evaluate':<40}{short(self.folder)}"

    def other_data(self, fingerprint: str) -> bool:
        """Whether prepared data is not what the run was trained on."""
        known = read_facts(self.run).get("data_fingerprint") if self.run else None
        return known not in (None, fingerprint)

    def write(self, results: dict[str, Any]) -> str:
        """evaluation.json, a line of it in run.json, and the run's page anew. Returns where it is, and where an earlier one
        is now.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder.absolute()
        run = RunDir(path=path, console=Console(), started=time.time())
        run.claim()
        try:
            earlier = keep_earlier(path / FILE)
            for name, text in {**self.typed, FILE: json.dumps(finite(results), indent=2, ensure_ascii=False)}.items():
                run.write(name, text + "\n" * (not text.endswith("\n")))
            if self.run is not None:
                run.reload()
                told = {key: results[key] for key in IN_RUN_JSON if key in results}
                run.update(evaluation={**told, "at": now(), "file": FILE})
        finally:
            run.release()
        if self.run is not None:
            report_on(run)  # once it is released: a run that somebody holds is told of as one that is alive
        return short(path / FILE) + (f"\nthe one before it is {short(earlier)} now" if earlier is not None else "")


def _trained(run: Path, run_dir: str | None) -> Path:
    """A run's folder that holds a model."""
    if run_dir is not None:
        raise UserError("run_dir: a run's evaluation goes into its own folder. Leave it out.")
    if not os.access(run, os.W_OK):
        raise UserError(f"run: the results go into {run}, which cannot be written.\n  Copy the run to where it can.")
    if is_claimed(run):
        raise UserError(f"run: a process is using {run} at this moment.\n  Wait for it.")
    if not (run / "model").is_dir():
        raise without_model(run)
    return run


def _fresh(asked: str | None, name: str) -> Path:
    """A folder that does not exist yet, or an empty one that was asked for."""
    if asked is None:
        moment = datetime.now()
        safe = "".join(char if char.isalnum() or char in "._-" else "_" for char in name)
        return (
            Path("outputs")
            / moment.strftime("%Y-%m-%d")
            / f"{moment:%H-%M-%S}-evaluate-{safe}-{random_source.token_hex(2)}"
        )
    folder = Path(asked).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"run_dir: '{asked}' is not an empty folder.\n  Write another run_dir=FOLDER.")
    return folder
