"""`dumbo --help` and `dumbo --info GROUP`, from the YAML files themselves; `--info VERB` from `verb_info.py`. Imports nothing
heavy; Hydra is not asked.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import dumbo
from dumbo.command import Command
from dumbo.compose import prepare_hydra, show
from dumbo.errors import UserError
from dumbo.groups import GROUPS, LIST_GROUPS
from dumbo.search_path import DumboSearchPath, conf_folder, files_of
from dumbo.suggest import did_you_mean
from dumbo.verb_info import TOPICS, verb_info
from dumbo.words import VERBS

WHAT = {
    "model": "weights and tokenizer",
    "patch": "a list: what is done to the model",
    "dataset": "rows",
    "formatter": "rows -> tokens, and which bear the loss",
    "trainer": "the method",
    "launch": "in how many processes",
    "tracker": "a list: copies of the numbers",
    "experiment": "+experiment=NAME: several choices at once",
}
DEFAULTS = {
    "model": "tiny",
    "dataset": "quiz",
    "formatter": "chat",
    "trainer": "sft",
    "launch": "auto",
    "tracker": "none",
}
EXAMPLES = (
    ("python -m dumbo", "the embedded default: no network, no GPU, under a minute"),
    ("python -m dumbo model=smollm patch=[liger,lora] trainer.lr=1e-4", "SmolLM2-135M with LoRA"),
    ("python -m dumbo -m patch=lora trainer.lr=1e-4,3e-4 patch.lora.rank=8,16", "a sweep of four runs"),
)
HYDRA_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def help_text(command: Command) -> str:
    """The whole help, grouped, with the choices of each group."""
    DumboSearchPath.config_dirs = command.config_dirs
    lines = [f"dumbo {dumbo.__version__}: fine-tunes language models from plugins that Hydra composes", ""]
    lines += ["  python -m dumbo [VERB] [FILE.yaml | DATA.jsonl] [flags] [overrides]", "", "Verbs (without one: train)"]
    lines += [f"  {verb:<10} {what}" for verb, what in VERBS.items()]
    lines += [
        f"  {'FILE.yaml':<10} an experiment of your own, for train, preview, verify, plan (the older plugin format is translated)",
        f"  {'DATA.jsonl':<10} what a data file looks like to dumbo, and the command to try",
        "",
        "Groups: GROUP=CHOICE, patch=[A,B]; then any key: trainer.lr=1e-4, patch.lora.rank=8",
    ]
    for group in [*GROUPS, "experiment"]:
        names = choices(group)
        shown = ", ".join(f"{name} (default)" if DEFAULTS.get(group) == name else name for name in names)
        lines += textwrap.wrap(
            f"{group:<10} {WHAT[group]}: {shown}", 118, initial_indent="  ", subsequent_indent=" " * 13
        )
    lines += [
        "",
        "Keys of a run: run_dir=PATH, resume=auto|last|RUN, repeat=last|RUN, sweep_dir=PATH, verify.mode=quick|off,",
        "audit.mode=stop|warn|off, performance=auto|off|[PATCH,…]; of evaluate, chat, export and report: run=last|RUN",
        "",
        "Flags",
        "  --info GROUP | VERB   keys of a group or a verb, each with what it does (dumbo --info trainer)",
        "  --cfg job             the composed config, nothing run          --resolve   with references resolved",
        "  --multirun, -m        a sweep over comma-separated values",
        "  --config-dir DIR      a folder of your own YAML files and plugin modules",
        '  --shell-completion install=bash|zsh|fish   eval "$(dumbo --shell-completion install=bash)"',
        "  --help, --version",
        "",
        "Examples",
    ]
    for words, what in EXAMPLES:
        lines += [f"  {words}", f"      {what}"]
    return "\n".join(lines)


def choices(group: str) -> list[str]:
    """A group's choices, the default first."""
    return sorted(files_of(group), key=lambda name: (DEFAULTS.get(group) != name, name))


def info_text(command: Command) -> str:
    """The keys of a group's choice, as its YAML file explains them; a verb's options; for Hydra's own topics, what Hydra says.

    Raises:
        UserError: neither a group, nor GROUP=CHOICE, nor a verb, nor a key of the run, nor one of Hydra's topics.
    """
    DumboSearchPath.config_dirs = command.config_dirs
    topic = str(command.info)
    if topic in HYDRA_INFO:
        show([*prepare_hydra(command.config_dirs, command.file), *command.overrides], ["--info", topic])
        return ""
    if topic in TOPICS:
        return verb_info(topic)
    if topic in (own := _own_keys()):
        return own[topic]
    group, _, choice = topic.replace(".", "=", 1).partition("=")
    if group not in WHAT:
        raise UserError(
            f"--info {topic}: there is no group or verb '{group}'.{did_you_mean(group, [*WHAT, *TOPICS])}\n"
            f"  groups: {', '.join(WHAT)}; verbs: {', '.join(TOPICS)}; keys: {', '.join(own)}; of Hydra: {', '.join(HYDRA_INFO)}"
        )
    typed = next((word.split("=", 1)[1].strip("[]") for word in command.overrides if word.startswith(f"{group}=")), "")
    names = choices(group)
    choice = choice or typed.split(",")[0] or (DEFAULTS.get(group, "") if group not in LIST_GROUPS else "")
    if not choice:
        lines = [f"{group}: {WHAT[group]}", ""]
        if group in LIST_GROUPS:
            return "\n".join([*lines, *(f"{_keys(group, name, names=[])}\n" for name in names)]).rstrip()
        lines += [f"  {name:<24} {_first_line(files_of(group)[name])}" for name in names]
        return "\n".join([*lines, "", f"  dumbo --info {group}=NAME lists its keys"])
    if choice not in names:
        raise UserError(
            f"{group} has no choice '{choice}'.{did_you_mean(choice, names)}\n  choices of {group}: {', '.join(names)}"
        )
    return _keys(group, choice, names)


def _own_keys() -> dict[str, str]:
    """The run's keys that stand in no group -> their lines in conf/config.yaml."""
    lines = (conf_folder() / "config.yaml").read_text(encoding="utf-8").splitlines()
    return {found[1]: line for line in lines if (found := re.match(r"(\w+): +\S+ +# ", line))}


def _keys(group: str, choice: str, names: list[str]) -> str:
    """A choice's YAML file, below its name and the choices there are."""
    text = files_of(group)[choice].read_text(encoding="utf-8").strip()
    others = f"   ({', '.join(names)})" * bool(names)
    return f"{group}={choice}{others}\n\n{textwrap.indent(text, '  ')}"


def _first_line(path: Path) -> str:
    """What a YAML file says of itself: its first comment that is no directive."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
    return ""
