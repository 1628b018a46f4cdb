"""What a typed word can be (verb, data file, override), and what is said to one that is none of them.

command.py sorts the words and asks here. Pure but for one look whether a file exists.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dumbo.errors import UserError
from dumbo.groups import GROUPS
from dumbo.suggest import did_you_mean

VERBS = {
    "train": "prepare the data, train, evaluate, save (the default)",
    "preview": "examples as coloured tokens (trained / not trained), then the audit of the whole data set",
    "verify": "proofs on this model and a sample of this data, each with its numbers; exit 4 when one fails",
    "plan": "what a run will cost: memory by part, batch, steps, disk, time; on a GPU, what fits",
    "evaluate": "held-out loss, exact match and tasks of a run, or of any model: dumbo evaluate run=last",
    "chat": 'talk to a run\'s model: dumbo chat run=last; one answer: chat.prompt="…"',
    "export": "a run's model as a plain Hugging Face folder, proven the same: dumbo export run=last export.to=FOLDER",
    "report": "a run, a sweep or several runs as one HTML page that needs no network: dumbo report run=last",
    "sweep": "a sweep's folder: dumbo sweep status FOLDER (last: the newest), or wait, or cancel",
    "doctor": "versions, devices, which kernels are usable here and why not",
}

KEYS = (*GROUPS, "experiment", "verify", "audit", "hydra")
"""What stands at the top of the config and has keys of its own."""

ACTIONS = ("status", "wait", "cancel")
"""Of the verb sweep."""

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
PACKED_SUFFIXES = (".gz", ".zst")


def is_bare(word: str) -> bool:
    """Whether a word is no override: no KEY=VALUE, no ~KEY."""
    return "=" not in word and not word.startswith("~")


def is_data(word: str) -> bool:
    """Whether a word names a data file, by its ending."""
    name = word.lower()
    for suffix in PACKED_SUFFIXES:
        name = name.removesuffix(suffix)
    return name.endswith(DATA_SUFFIXES)


def sweep_action(words: list[str]) -> tuple[str, str]:
    """Takes `status FOLDER` off the words behind the verb sweep.

    Raises:
        UserError: they are not there.
    """
    usage = "dumbo sweep status FOLDER, dumbo sweep wait FOLDER, dumbo sweep cancel FOLDER (last: the newest)."
    first = words.pop(0) if words and is_bare(words[0]) else ""
    if first not in ACTIONS:
        found = f"'{first}' is none of its actions.{did_you_mean(first, ACTIONS)}" if first else "what of it?"
        raise UserError(
            f"sweep: {found}\n  Write {usage}\n  A sweep is started with -m: python -m dumbo -m trainer.lr=1e-4,3e-4"
        )
    if not words or words[0].startswith("sweep."):
        raise UserError(f"sweep {first}: which sweep? Write dumbo sweep {first} FOLDER, or last for the newest.")
    return first, words.pop(0)


def refuse_stray(words: Sequence[str], verb: str) -> None:
    """Refuses the first word that is no override, saying what was probably meant.

    Args:
        words: what is left of the command line, in the order typed.
        verb: what they were typed for.

    Raises:
        UserError: there is such a word.
    """
    stray = next((word for word in words if is_bare(word)), None)
    if stray is None:
        return
    if stray in VERBS:
        raise UserError(f"The verb comes first: python -m dumbo {stray} …")
    if stray.lstrip("+").split(".")[0] in KEYS:
        raise UserError(unknown_word(stray.lstrip("+")))
    if stray.endswith("]") and any("[" in word and "]" not in word for word in words):
        opened = next(word for word in words if "[" in word and "]" not in word)
        whole = "".join(words[words.index(opened) : words.index(stray) + 1])
        raise UserError(f"A list has no spaces in it: {whole}")
    if is_data(stray) and Path(stray).expanduser().is_file():
        raise UserError(
            f"'{stray}' is a data file. To look at it: dumbo {stray}\n"
            f"  For {verb} it is named as an override: dataset=files dataset.path={stray}"
        )
    raise UserError(
        f"'{stray}' is no override: overrides are KEY=VALUE or GROUP=CHOICE.\n"
        "  A value with spaces needs quotes inside quotes: 'chat.prompt=\"two words\"' (dumbo chat adds them by itself)."
    )


def _is_file(word: str) -> bool:
    try:
        return Path(word).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # too long, another user's home, a NUL: no file's name
        return False


def unknown_word(word: str) -> str:
    """What is said to a word in the verb's place that is none, or to a key without its value."""
    if re.fullmatch(r"[\w@/]+\.[\w.]+", word) and word.split(".")[0] in KEYS:
        return f"'{word}' lacks its value: {word}=VALUE."
    if word in KEYS and word not in (*GROUPS, "experiment"):
        shows = "--cfg all" if word == "hydra" else f"--info {word}"
        return f"'{word}' has keys of its own: {word}.KEY=VALUE (dumbo {shows} shows them)."
    if word in KEYS:
        return f"'{word}' lacks its choice: {word}=NAME (dumbo --info {word})."
    if _is_file(word):
        known = ", ".join((".yaml", *DATA_SUFFIXES))
        return (
            f"'{word}' is a file, but neither data nor an experiment by its name ({known}; also packed: {', '.join(PACKED_SUFFIXES)}).\n"
            "  Rename it, or name its kind: dataset=files dataset.path=FILE dataset.kind=jsonl"
        )
    return (
        f"'{word}' is neither a verb, nor a file, nor an override.{did_you_mean(word, VERBS)}\n"
        f"  verbs: {', '.join(VERBS)}; overrides are KEY=VALUE (dumbo --help)"
    )
