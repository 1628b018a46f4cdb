"""`repeat=RUN` and `resume=RUN`: take up what was typed for an earlier run, with what is typed now behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dumbo.command import Command, parse
from dumbo.errors import UserError
from dumbo.outputs.secrets import MASK
from dumbo.refuse import typed_text
from dumbo.suggest import did_you_mean

CONFIG_DIR = "--config-dir="
NOT_KEPT = ("run_dir", "resume", "repeat")
"""Keys that say where a run lies or which one it is: never taken over."""


def with_recorded(command: Command) -> Command:
    """The command with the words of the run that it repeats or resumes in front of its own."""
    repeated = typed_text(command.overrides, "repeat")
    resumed = typed_text(command.overrides, "resume")
    if repeated is not None:
        return _merged(command, Path(repeated), "repeat")
    if resumed not in (None, "auto"):
        return _merged(command, Path(str(resumed)), "resume")
    return command


def _merged(command: Command, run: Path, key: str) -> Command:
    words = _recorded(run, key)
    hidden = [word.partition("=")[0] for word in words if MASK in word]
    own = command.overrides if key == "resume" else tuple(w for w in command.overrides if not w.startswith("repeat="))
    chosen = {_key(word) for word in own}
    if unknown := [name for name in hidden if _key(name) not in chosen]:
        raise UserError(f"{key}: the value of {unknown[0]} was not written down. Type it again: {unknown[0]}=…")
    folders = [Path(word.removeprefix(CONFIG_DIR)) for word in words if word.startswith(CONFIG_DIR)]
    if unasked := [folder for folder in folders if folder not in command.config_dirs]:
        raise UserError(
            f"{key}: the run used plugins from {unasked[0]}, whose code would run.\n"
            f"  Type --config-dir={unasked[0]} again if you trust it."
        )
    rest = [word for word in words if (not word.startswith(CONFIG_DIR) and "=" in word) or word.startswith("~")]
    kept = parse([word for word in rest if _key(word) not in chosen and _key(word) not in NOT_KEPT]).overrides
    return replace(
        command,
        overrides=(*kept, *own),
        file=command.file or _experiment(run, words, key),
    )


def _key(word: str) -> str:
    return word.lstrip("+~").split("=")[0]


def _recorded(run: Path, key: str) -> list[str]:
    """The words of overrides.yaml."""
    import yaml

    file = run.expanduser() / "overrides.yaml"
    if not file.is_file():
        raise UserError(
            f"{key}: '{run}' is not a run's folder (there is no overrides.yaml in it).{_near(run)}\n"
            f"  Write {key}=FOLDER of a run, as outputs/DATE/NAME."
        )
    return [str(word) for word in yaml.safe_load(file.read_text(encoding="utf-8")) or []]


def _near(run: Path) -> str:
    parent = run.expanduser().parent
    return did_you_mean(run.name, [entry.name for entry in parent.iterdir()] if parent.is_dir() else [])


def _experiment(run: Path, words: list[str], key: str) -> Path | None:
    """The experiment's YAML file: the copy in the run's folder, or where it was."""
    copy = run.expanduser() / "experiment.yaml"
    if copy.is_file():
        if MASK in copy.read_text(encoding="utf-8"):
            raise UserError(
                f"{key}: {copy} holds values that were not written down ({MASK}).\n  Put them back, as ${{oc.env:NAME}}."
            )
        return copy.resolve()
    named = [Path(word) for word in words if "=" not in word and word.endswith((".yaml", ".yml"))]
    if named and not named[0].is_file():
        raise UserError(
            f"{key}: the run's experiment file {named[0]} is gone, and {copy} too.\n  Put one of them back."
        )
    return named[0] if named else None
