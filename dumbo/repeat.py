"""`repeat=RUN` and `resume=RUN`: take up what was typed for an earlier run, with what is typed now behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dumbo.command import Command, parse
from dumbo.errors import UserError


def with_recorded(command: Command) -> Command:
    """The command with the words of the run that it repeats or resumes in front of its own."""
    repeated = _value(command, "repeat")
    resumed = _value(command, "resume")
    if repeated is not None:
        return _merged(command, Path(repeated), "repeat", drop=("run_dir", "resume", "repeat"))
    if resumed not in (None, "auto"):
        return _merged(command, Path(str(resumed)), "resume", drop=("run_dir", "resume", "repeat"))
    return command


def _value(command: Command, key: str) -> str | None:
    """The last value typed for a top-level key; None when it was not typed, or is null."""
    words = [word for word in command.overrides if word.startswith(f"{key}=")]
    value = words[-1].removeprefix(f"{key}=").strip("'\"") if words else None
    return None if value in (None, "null", "") else value


def _merged(command: Command, run: Path, key: str, drop: tuple[str, ...]) -> Command:
    import yaml

    file = run.expanduser() / "overrides.yaml"
    if not file.is_file():
        raise UserError(f"{key}: '{run}' is not a run's folder (there is no overrides.yaml in it).")
    words = [str(word) for word in yaml.safe_load(file.read_text(encoding="utf-8")) or []]
    recorded = parse([word for word in words if word.lstrip("+").split("=")[0] not in drop])
    copy = run.expanduser() / "experiment.yaml"
    experiment = copy.resolve() if copy.is_file() else recorded.file
    own = (
        command.overrides
        if key == "resume"
        else tuple(word for word in command.overrides if not word.startswith("repeat="))
    )
    chosen = {word.lstrip("+~").split("=")[0] for word in own}
    kept = tuple(word for word in recorded.overrides if word.lstrip("+~").split("=")[0] not in chosen)
    return replace(
        command,
        overrides=(*kept, *own),
        file=command.file or experiment,
        config_dirs=command.config_dirs or recorded.config_dirs,
    )


def recorded_config_dirs(run: Path) -> tuple[Path, ...]:
    """The --config-dir folders a run was started with."""
    import sys

    import yaml

    words = yaml.safe_load((run / "overrides.yaml").read_text(encoding="utf-8")) or []
    folders = tuple(
        Path(str(word).removeprefix("--config-dir=")) for word in words if str(word).startswith("--config-dir=")
    )
    sys.path += [str(folder) for folder in folders if str(folder) not in sys.path]
    return folders
