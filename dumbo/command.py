"""The typed words -> verb, file, flags, overrides. Pure: nothing is composed or imported here.

dumbo [VERB] [FILE.yaml] [flags] [overrides], or DATA.jsonl in their place (FILE.yaml: train, preview, verify, plan);
dumbo report FOLDER … [overrides]
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from dumbo.errors import UserError
from dumbo.override_text import quoted, value_text
from dumbo.suggest import did_you_mean
from dumbo.words import VERBS, is_bare, is_data, refuse_stray, sweep_action, unknown_word


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """A run to do again.

    Attributes:
        run: its folder.
        words: its own words, those without values that were not written down.
        file: its experiment's YAML file.
        own: the words typed now.
    """

    run: Path
    words: tuple[str, ...]
    file: Path | None
    own: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What was typed, sorted.

    Attributes:
        verb: one of VERBS.
        overrides: Hydra overrides, in the order typed.
        config_dirs: folders given as --config-dir, absolute.
        file: an experiment's YAML file given as first word, or behind train, preview or verify.
        data: a data file given as first word (`dumbo DATA.jsonl`).
        paths: folders of runs or of a sweep given behind `report`.
        action: of the verb sweep: status, wait or cancel; folder: the sweep's, "last" for the newest.
        multirun: -m.
        flags: Hydra's own flags to pass on (--cfg job, --resolve, …).
        info: the argument of --info.
        help, version: whether asked for.
        repeats: the run that `repeat=` names, and what was typed besides (repeat.py).
        typed: the words themselves, paths made absolute: enough to type it again elsewhere.
    """

    verb: str
    overrides: tuple[str, ...]
    config_dirs: tuple[Path, ...] = ()
    file: Path | None = None
    data: Path | None = None
    paths: tuple[str, ...] = ()
    action: str | None = None
    folder: str | None = None
    multirun: bool = False
    flags: tuple[str, ...] = ()
    info: str | None = None
    help: bool = False
    version: bool = False
    repeats: Repeated | None = None

    @property
    def typed(self) -> list[str]:
        words = [f"--config-dir={folder}" for folder in self.config_dirs]
        words += [str(self.file)] if self.file else []
        return words + list(self.overrides)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        keys = " Keys are typed as KEY=VALUE: trainer.lr=1e-4." if "unrecognized arguments" in message else ""
        raise UserError(f"The command line: {message}.{keys}\n  dumbo --help shows what can be typed.")


def parse(argv: Sequence[str]) -> Command:
    """Sorts the words of the command line.

    Raises:
        UserError: an unknown flag or verb, a file that does not exist.
    """
    args = _parser().parse_intermixed_args(list(argv))
    words: list[str] = list(args.words)
    verb, file, data = "train", None, None
    action, folder = None, None
    if words and is_bare(words[0]):
        first = words.pop(0)
        if first in VERBS:
            verb = first
        elif first.endswith((".yaml", ".yml")):
            file = _existing(first)
        elif is_data(first):
            verb, data = "preview", _existing(first)
        else:
            raise UserError(unknown_word(first))
    if verb == "sweep" and not args.help:
        action, folder = sweep_action(words)
    if (
        verb in ("train", "preview", "verify", "plan")
        and data is None
        and words
        and file is None
        and is_bare(words[0])
        and words[0].endswith((".yaml", ".yml"))
    ):
        file = _existing(words.pop(0))
    paths = tuple(word for word in words if is_bare(word) or _is_run(word)) if verb == "report" else ()
    words = [word for word in words if word not in paths]
    refuse_stray(words, verb)
    return Command(
        verb=verb,
        overrides=tuple(_quoted(_with_plus(word)) for word in words),
        config_dirs=tuple(_existing_folder(folder) for folder in args.config_dir),
        file=file,
        data=data,
        paths=paths,
        action=action,
        folder=folder,
        multirun=args.multirun,
        flags=_hydra_flags(args),
        info=args.info,
        help=args.help,
        version=args.version,
    )


def _parser() -> argparse.ArgumentParser:
    """Hydra's flags, so that words and flags may come in any order (Hydra's own parser wants flags first)."""
    parser = _Parser(prog="dumbo", add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd", action="append", default=[])
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--package", "-p")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--info", "-i", nargs="?", const="all")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    return parser


def _hydra_flags(args: argparse.Namespace) -> tuple[str, ...]:
    """The flags that Hydra acts on, to pass on as typed."""
    flags: list[str] = []
    for name in ("cfg", "package"):
        if value := getattr(args, name):
            flags += [f"--{name}", value]
    if args.resolve:
        flags.append("--resolve")
    if args.shell_completion:
        flags.append("--shell-completion")
    return tuple(flags)


def _is_run(word: str) -> bool:
    """Whether a word with a `=` in it is the folder of a sweep's job (`000-lr=1e-4-3f9c`), and no override."""
    return (Path(word).expanduser() / "run.json").is_file()


def _existing(word: str) -> Path:
    path = Path(word).expanduser()
    if not path.is_file():
        folder = path.parent
        siblings = (
            [str(folder / p.name) if folder != Path() else p.name for p in folder.iterdir()] if folder.is_dir() else []
        )
        raise UserError(f"There is no file '{word}'.{did_you_mean(word, siblings)}")
    return path.resolve()


def _existing_folder(word: str) -> Path:
    path = Path(word).expanduser()
    if not path.is_dir():
        raise UserError(f"--config-dir: there is no folder '{word}'.")
    return path.resolve()


OPEN_MAPPINGS = (
    "trainer.extra.",
    "trainer.extra=",
    "audit.fail_on.",
    "audit.fail_on=",
    "preview.fail_on.",
    "preview.fail_on=",
    "dataset.columns.",
    "dataset.columns=",
    "hydra.launcher.additional_parameters.",
    "hydra.launcher.additional_parameters=",
)


def _with_plus(word: str) -> str:
    """`trainer.extra.KEY=V` adds a key, which Hydra wants said: `++trainer.extra.KEY=V`."""
    return f"++{word}" if word.startswith(OPEN_MAPPINGS) else word


PLACES = ("run", "repeat", "resume", "run_dir", "sweep_dir")
"""Keys whose value is a folder."""


def _quoted(word: str) -> str:
    """A prompt is free text: quoted for Hydra's grammar unless it is quoted already, a `${` in it no reference. So is the
    folder of a sweep's job (`000-trainer.lr=1e-4-3f9c`), or any that is there.
    """
    for key in ("chat.prompt=", "chat.system="):
        if word.startswith(key):
            value = word[len(key) :]
            if not _is_quoted(value) and value != "null":
                return key + quoted(re.sub(r"(\\*)\$\{", r"\1\1\\${", value))
    key, sign, value = word.partition("=")
    if key in PLACES and not _is_quoted(value) and "${" not in value and ("=" in value or _is_there(value)):
        return key + sign + value_text(value)
    return word


def _is_there(value: str) -> bool:
    """Whether it is a folder as typed; what means something to Hydra's grammar (a list, null) is none."""
    return value not in ("", "null") and Path(value).expanduser().is_dir()


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
