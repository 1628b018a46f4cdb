"""`repeat=RUN`, `resume=RUN` and `evaluate run=RUN`: take up what was typed for an earlier run, with what is typed now
behind it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from dumbo.command import Command, parse
from dumbo.compose import experiment_of
from dumbo.errors import UserError
from dumbo.groups import GROUPS
from dumbo.hydra_node import TYPED_ONLY, key_of
from dumbo.outputs.runs import find_run, is_model_folder
from dumbo.outputs.secrets import MASK, hidden_keys, hidden_places
from dumbo.override_text import value_text
from dumbo.refuse import typed_text
from dumbo.suggest import did_you_mean

CONFIG_DIR = "--config-dir="
NOT_KEPT = ("run_dir", "resume", "repeat", "run")
"""Keys that say where a run lies or which one it is: never taken over."""


def with_recorded(command: Command) -> Command:
    """The command with the words of the run that it repeats, resumes or evaluates in front of its own; `last`: the newest."""
    command = _with_last(command)
    if command.verb == "evaluate":
        return _evaluated(command)
    repeated = typed_text(command.overrides, "repeat")
    resumed = typed_text(command.overrides, "resume")
    if repeated is not None:
        return _merged(command, Path(repeated), "repeat")
    if resumed not in (None, "auto"):
        return _merged(command, Path(str(resumed)), "resume")
    return command


def _with_last(command: Command) -> Command:
    """`resume=last` and `repeat=last` as the folder that it means."""

    def named(word: str) -> str:
        key = key_of(word)
        if key not in ("resume", "repeat") or typed_text([word], key) != "last":
            return word
        return f"{key}={value_text(str(find_run('last', key)))}"

    return replace(command, overrides=tuple(named(word) for word in command.overrides))


def _evaluated(command: Command) -> Command:
    """`run=RUN` brings that run's words; `run=FOLDER` of a model in Hugging Face's format is `model=pretrained`.

    Raises:
        UserError: a model's folder and another model.
    """
    asked = typed_text(command.overrides, "run")
    if asked is None:
        return command
    if asked == "last" or not is_model_folder(Path(asked).expanduser()):
        return _merged(command, find_run(asked), "run")
    own = tuple(word for word in command.overrides if key_of(word) != "run")
    if named := [word for word in own if key_of(word) in ("model", "model.path")]:
        raise UserError(f"run={asked} is a model's folder, and {named[0]} names another model.\n  Leave one out.")
    return replace(command, overrides=("model=pretrained", f"model.path={value_text(asked)}", *own))


def _merged(command: Command, run: Path, key: str) -> Command:
    words = _recorded(run, key)
    own = tuple(w for w in command.overrides if not w.startswith("repeat=")) if key == "repeat" else command.overrides
    chosen = {key_of(word) for word in own}
    require_typed(words, chosen, command, key)
    rest = [word for word in words if (not word.startswith(CONFIG_DIR) and "=" in word) or word.startswith("~")]
    rest = [word for word in rest if not key_of(word).startswith(("hydra.", "hydra/"))]  # of a sweep, not of its runs
    if "launch" in chosen:  # another way of launching has other keys; none of them changes a number
        rest = [word for word in rest if not key_of(word).startswith("launch.")]
    if key == "run":  # one process evaluates, nobody tracks it; another choice of a group brings its own keys
        gone = {"launch", "tracker", *(group for group in GROUPS if group in chosen)}
        rest = [word for word in rest if key_of(word).split(".")[0] not in gone]
    kept = parse([word for word in rest if key_of(word) not in chosen and key_of(word) not in NOT_KEPT]).overrides
    return replace(
        command,
        overrides=(*kept, *own),
        file=command.file or _experiment(run, words, key, chosen),
    )


def require_typed(words: list[str], chosen: Collection[str], command: Command, key: str) -> None:
    """A run's folder from somebody else brings no code along, and holds no secrets: both are typed again.

    Raises:
        UserError: what is to be typed.
    """
    folders = [Path(word.removeprefix(CONFIG_DIR)) for word in words if word.startswith(CONFIG_DIR)]
    if unasked := [folder for folder in folders if folder not in command.config_dirs]:
        raise UserError(
            f"{key}: the run used plugins from {unasked[0]}, whose code would run.\n"
            f"  Type --config-dir={unasked[0]} again if you trust it."
        )
    for word in words:
        name, _, value = word.lstrip("+~").partition("=")
        if name in chosen or not value or value.lower() in ("false", "null"):
            continue
        if why := {**TYPED_ONLY, "hydra.searchpath": "YAML files would come from there"}.get(name):
            raise UserError(f"{key}: the run had {name}={value}, and {why}.\n  Type {word} again if you trust it.")
    for name in [name for word in words for name in hidden_keys(word)]:
        if not _is_chosen(name, chosen):
            raise UserError(f"{key}: the value of {name} was not written down. Type it again: {name}=…")


def _is_chosen(name: str, chosen: Collection[str]) -> bool:
    """Whether a key, or one above it, is typed."""
    parts = name.split(".")
    return any(".".join(parts[:count]) in chosen for count in range(1, len(parts) + 1))


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


def _experiment(run: Path, words: list[str], key: str, chosen: Collection[str]) -> Path | None:
    """The experiment's YAML file: the copy in the run's folder, or where it was."""
    copy = run.expanduser() / "experiment.yaml"
    if copy.is_file():
        names = [".".join(place) for place in hidden_places(experiment_of(copy))]
        if hidden := [name for name in names if not _is_chosen(name, chosen)]:
            raise UserError(
                f"{key}: {copy} lacks values that were not written down ({MASK}): {', '.join(hidden)}.\n"
                f"  Type them again: {hidden[0]}=…, or put them back, as ${{oc.env:NAME}}."
            )
        return copy.resolve()
    named = [Path(word) for word in words if "=" not in word and word.endswith((".yaml", ".yml"))]
    if named and not named[0].is_file():
        raise UserError(
            f"{key}: the run's experiment file {named[0]} is gone, and {copy} too.\n  Put one of them back."
        )
    return named[0] if named else None
