"""The typed words -> verb, file, flags, overrides. Pure: nothing is composed or imported here.

dumbo [VERB] [FILE.yaml] [flags] [overrides], or DATA.jsonl in their place (FILE.yaml: train, preview)
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from dumbo.errors import UserError
from dumbo.override_text import quoted
from dumbo.suggest import did_you_mean

VERBS = {
    "train": "prepare the data, train, evaluate, save (the default)",
    "preview": "examples as coloured tokens (trained / not trained), then the audit of the whole data set",
    "chat": 'ask a run\'s model: dumbo chat run=last chat.prompt="…"',
    "doctor": "versions, devices, which kernels are usable here and why not",
}
LATER_VERBS = ("verify", "plan", "evaluate", "export", "report", "sweep")

KEYS = ("model", "patch", "dataset", "formatter", "trainer", "launch", "tracker", "experiment", "verify", "hydra")
"""What stands at the top of the config and has keys of its own (check.py's GROUPS, without importing it)."""

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
PACKED_SUFFIXES = (".gz", ".zst")


@dataclass(frozen=True, kw_only=True)
class Command:
    """What was typed, sorted.

    Attributes:
        verb: one of VERBS.
        overrides: Hydra overrides, in the order typed.
        config_dirs: folders given as --config-dir, absolute.
        file: an experiment's YAML file given as first word, or behind train or preview.
        data: a data file given as first word (`dumbo DATA.jsonl`).
        multirun: -m.
        flags: Hydra's own flags to pass on (--cfg job, --resolve, …).
        info: the argument of --info.
        help, version: whether asked for.
        typed: the words themselves, paths made absolute: enough to type it again elsewhere.
    """

    verb: str
    overrides: tuple[str, ...]
    config_dirs: tuple[Path, ...] = ()
    file: Path | None = None
    data: Path | None = None
    multirun: bool = False
    flags: tuple[str, ...] = ()
    info: str | None = None
    help: bool = False
    version: bool = False

    @property
    def typed(self) -> list[str]:
        words = [f"--config-dir={folder}" for folder in self.config_dirs]
        words += [str(self.file)] if self.file else []
        return words + list(self.overrides)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"The command line: {message}.\n  dumbo --help shows what can be typed.")


def parse(argv: Sequence[str]) -> Command:
    """Sorts the words of the command line.

    Raises:
        UserError: an unknown flag or verb, a file that does not exist.
    """
    args = _parser().parse_intermixed_args(list(argv))
    words: list[str] = list(args.words)
    verb, file, data = "train", None, None
    if words and _is_bare(words[0]):
        first = words.pop(0)
        if first in VERBS:
            verb = first
        elif first.endswith((".yaml", ".yml")):
            file = _existing(first)
        elif _is_data(first):
            verb, data = "preview", _existing(first)
        else:
            raise UserError(_unknown_word(first))
    if (
        verb in ("train", "preview")
        and data is None
        and words
        and file is None
        and _is_bare(words[0])
        and words[0].endswith((".yaml", ".yml"))
    ):
        file = _existing(words.pop(0))
    stray = next((word for word in words if _is_bare(word)), None)
    if stray is not None and stray.lstrip("+").split(".")[0] in KEYS:
        raise UserError(_unknown_word(stray.lstrip("+")))
    if stray is not None and stray in VERBS:
        raise UserError(f"The verb comes first: python -m dumbo {stray} …")
    if stray is not None and stray.endswith("]") and any("[" in word and "]" not in word for word in words):
        opened = next(word for word in words if "[" in word and "]" not in word)
        whole = "".join(words[words.index(opened) : words.index(stray) + 1])
        raise UserError(f"A list has no spaces in it: {whole}")
    if stray is not None and _is_data(stray) and Path(stray).expanduser().is_file():
        raise UserError(
            f"'{stray}' is a data file. To look at it: dumbo {stray}\n"
            f"  For {verb} it is named as an override: dataset=files dataset.path={stray}"
        )
    if stray is not None:
        raise UserError(
            f"'{stray}' is no override: overrides are KEY=VALUE or GROUP=CHOICE.\n"
            "  A value with spaces needs quotes inside quotes: 'chat.prompt=\"two words\"' (dumbo chat adds them by itself)."
        )
    flags: list[str] = []
    for name in ("cfg", "package"):
        if value := getattr(args, name):
            flags += [f"--{name}", value]
    if args.resolve:
        flags.append("--resolve")
    if args.shell_completion:
        flags.append("--shell-completion")
    return Command(
        verb=verb,
        overrides=tuple(_quoted(_with_plus(word)) for word in words),
        config_dirs=tuple(_existing_folder(folder) for folder in args.config_dir),
        file=file,
        data=data,
        multirun=args.multirun,
        flags=tuple(flags),
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


def _is_bare(word: str) -> bool:
    return "=" not in word and not word.startswith("~")


def _is_data(word: str) -> bool:
    name = word.lower()
    for suffix in PACKED_SUFFIXES:
        name = name.removesuffix(suffix)
    return name.endswith(DATA_SUFFIXES)


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


def _unknown_word(word: str) -> str:
    if re.fullmatch(r"[\w@/]+\.[\w.]+", word) and word.split(".")[0] in KEYS:
        return f"'{word}' lacks its value: {word}=VALUE."
    if word in KEYS:
        return f"'{word}' lacks its choice: {word}=NAME (dumbo --info {word})."
    if word in LATER_VERBS:
        return f"'{word}' is not built yet. The verbs are: {', '.join(VERBS)}."
    return (
        f"'{word}' is neither a verb, nor a file, nor an override.{did_you_mean(word, VERBS)}\n"
        f"  verbs: {', '.join(VERBS)}; overrides are KEY=VALUE (dumbo --help)"
    )


OPEN_MAPPINGS = (
    "trainer.extra.",
    "trainer.extra=",
    "preview.fail_on.",
    "preview.fail_on=",
    "dataset.columns.",
    "dataset.columns=",
)


def _with_plus(word: str) -> str:
    """`trainer.extra.KEY=V` adds a key, which Hydra wants said: `++trainer.extra.KEY=V`."""
    return f"++{word}" if word.startswith(OPEN_MAPPINGS) else word


def _quoted(word: str) -> str:
    """A prompt is free text: quoted for Hydra's grammar unless it is quoted already, a `${` in it no reference."""
    for key in ("chat.prompt=", "chat.system="):
        if word.startswith(key):
            value = word[len(key) :]
            if not (len(value) > 1 and value[0] == value[-1] and value[0] in "'\"") and value != "null":
                return key + quoted(re.sub(r"(\\*)\$\{", r"\1\1\\${", value))
    return word
