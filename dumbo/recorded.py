"""`repeat=RUN`: the run's own config (config.yaml), with what is typed now on top.

argv -> repeat.py (the words) -> compose, twice: what the run's words mean today, and what they mean with those typed now
-> here -> check.py. A default that has changed since in conf/ does not change a repetition: it is told, and the run's
value is kept. What typed words change, they change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from dumbo.command import Command, Repeated
from dumbo.compose import Composed, compose, prepare_hydra, translated
from dumbo.errors import UserError
from dumbo.groups import GROUPS, LIST_GROUPS
from dumbo.hydra_node import TYPED_ONLY, key_of
from dumbo.outputs.config_hash import CAME_LATER, differences
from dumbo.outputs.runs import read_facts
from dumbo.outputs.secrets import hidden_places, masked
from dumbo.override_text import value_text

OF_THE_RUN = (*GROUPS, "verify", "audit", "performance")
"""What of a config is the run's; the rest says where it lies, or is another verb's."""
LISTS = tuple((group,) for group in LIST_GROUPS)
ABSENT: Any = object()
Place = tuple[str, ...]


@dataclass(frozen=True)
class Repeats:
    """What a run repeats, and how it differs.

    Attributes:
        run: the other run's folder.
        facts: its run.json.
        typed: keys that were typed for this one.
        kept: `trainer.lr: 0.001 (today's default: 0.002)`, where the run's value was kept.
        changed: `trainer.lr: 0.001 -> 0.003`, where this one is another.
    """

    run: Path
    facts: Mapping[str, Any]
    typed: tuple[str, ...]
    kept: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def composed_for(command: Command) -> Composed:
    """The config of a command: composed, and of `repeat=RUN` as that run recorded it.

    Raises:
        UserError: as `compose`; a config.yaml that is none, or that would run code.
    """
    told = command.repeats
    if told is None:
        return compose([*prepare_hydra(command.config_dirs, command.file), *command.overrides])
    before = _of_its_words(command, told)
    now = compose([*prepare_hydra(command.config_dirs, command.file), *command.overrides])
    typed = tuple(key_of(word) for word in told.own)
    repeats = Repeats(told.run, read_facts(told.run), typed)
    recorded = _recorded(told.run)
    if recorded is None:  # a folder with words alone
        return replace(now, repeats=repeats)
    with translated(command.overrides):
        today = masked(now.cfg)
        old = before if before is not None else today
        edits = list(_edits((), _of_the_run(recorded), _of_the_run(old), _of_the_run(today), typed))
        for path, value in edits:
            _refuse_code(".".join(path), value, typed)
        cfg = _edited(now.cfg, edits)
        final = masked(cfg)
    kept = [_kept(line) for line in differences(today, final)]
    changed = differences(_of_the_run(recorded), _of_the_run(final))
    return Composed(cfg, _choices(now.choices, repeats.facts, edits), replace(repeats, kept=kept, changed=changed))


def with_recorded_values(command: Command) -> Command:
    """What a repeated run recorded and its words do not give today, as words of their own, before those typed now.

    For a sweep over a repeated run, whose jobs are composed from words alone, and for Hydra's flags that show a config.
    """
    told = command.repeats
    recorded = _recorded(told.run) if told is not None else None
    if told is None or recorded is None or (old := _of_its_words(command, told)) is None:
        return command
    typed = tuple(key_of(word) for word in told.own)
    edits = list(_edits((), _of_the_run(recorded), _of_the_run(old), _of_the_run(old), typed))
    for path, value in edits:
        _refuse_code(".".join(path), value, typed)
    words = [
        f"~{'.'.join(path)}" if value is ABSENT else f"++{'.'.join(path)}={value_text(value)}" for path, value in edits
    ]
    own = len(told.own)
    return replace(
        command, overrides=(*command.overrides[:-own], *words, *told.own) if own else (*command.overrides, *words)
    )


def _of_its_words(command: Command, told: Repeated) -> dict[str, Any] | None:
    """What the run's words alone mean today; None: they do not compose any more (what is typed now may mend that)."""
    try:
        with translated(told.words):
            return masked(compose([*prepare_hydra(command.config_dirs, told.file), *told.words]).cfg)
    except UserError:
        return None


def _recorded(run: Path) -> dict[str, Any] | None:
    file = run / "config.yaml"
    if not file.is_file():
        return None
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"repeat: {file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise UserError(f"repeat: {file} is not what a run writes (no mapping).\n  Name another run.")
    return found


def _of_the_run(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tree[key] for key in OF_THE_RUN if key in tree}


def _edits(path: Place, run: Any, old: Any, new: Any, typed: Sequence[str]) -> Iterator[tuple[Place, Any]]:
    """(path, value) of what is to be changed in today's config; ABSENT takes a key away.

    Args:
        run: as recorded. old: what the run's words mean today. new: with what is typed now. ABSENT where there is none.
    """
    if _is_typed(path, typed):
        return
    if isinstance(run, Mapping) and isinstance(new, Mapping):
        another = run.get("_target_") != new.get("_target_")
        if another and (not isinstance(old, Mapping) or old.get("_target_") != new.get("_target_")):
            return  # another class was typed
        for key in dict.fromkeys([*new, *run]):
            below = (*path, str(key))
            own, before, now = run.get(key, ABSENT), _below(old, key), new.get(key, ABSENT)
            if own is ABSENT:
                yield from _added_since(below, before, now, typed, drops=another or path in LISTS)
            else:
                yield from _edits(below, own, before, now, typed)
        return
    if new != old or run == new or _hidden(run):
        return
    yield path, run


def _below(node: Any, key: Any) -> Any:
    return node.get(key, ABSENT) if isinstance(node, Mapping) else ABSENT


def _added_since(path: Place, old: Any, new: Any, typed: Sequence[str], *, drops: bool) -> Iterator[tuple[Place, Any]]:
    """A key that the run did not have: typed for this one, or there since."""
    if old is ABSENT or old != new or _is_typed(path, typed) or _typed_below(path, typed):
        return
    if drops:  # of another class; or a patch, a tracker that nobody chose then
        yield path, ABSENT
    elif ".".join(path) in CAME_LATER and new != CAME_LATER[".".join(path)]:
        yield path, CAME_LATER[".".join(path)]


def _is_typed(path: Place, typed: Sequence[str]) -> bool:
    """Whether a key, or one above it, was typed."""
    return any(".".join(path[:count]) in typed for count in range(1, len(path) + 1))


def _typed_below(path: Place, typed: Sequence[str]) -> bool:
    return any(key.startswith(f"{'.'.join(path)}.") for key in typed)


def _hidden(value: Any) -> bool:
    """Whether a value was not written down whole: today's is taken, which was typed again (repeat.py asks for it)."""
    return bool(hidden_places(value))


def _refuse_code(key: str, value: Any, typed: Sequence[str]) -> None:
    """A folder from somebody else must not switch on what only the command line may."""
    for name, why in TYPED_ONLY.items():
        inside = value
        for part in name.removeprefix(key).strip(".").split(".") if name.startswith(f"{key}.") else []:
            inside = inside.get(part) if isinstance(inside, Mapping) else None
        if (name == key or name.startswith(f"{key}.")) and inside not in (None, False, ABSENT) and name not in typed:
            raise UserError(
                f"repeat: the run had {name}={inside}, and {why}.\n  Type {name}={inside} again if you trust it."
            )


def _edited(cfg: DictConfig, edits: Sequence[tuple[Place, Any]]) -> DictConfig:
    tree = OmegaConf.to_container(cfg, resolve=False)
    for path, value in edits:
        node: Any = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        if value is ABSENT:
            node.pop(path[-1], None)
        else:
            node[path[-1]] = value
    found = OmegaConf.create(tree)
    assert isinstance(found, DictConfig)
    OmegaConf.set_struct(found, True)
    return found


def _kept(line: str) -> str:
    """`trainer.lr: 0.002 -> 0.001`, today's and the run's, as it is told."""
    key, _, values = line.partition(": ")
    today, _, run = values.partition(" -> ")
    return f"{key}: {run} (today's default: {today})"


def _choices(now: Mapping[str, Any], facts: Mapping[str, Any], edits: Sequence[tuple[Place, Any]]) -> dict[str, Any]:
    """Group -> choice; the run's where its class was taken over."""
    chosen = facts.get("choices")
    taken = {path[0] for path, _ in edits if path[-1] == "_target_"}
    return {
        key: chosen[key] if key in taken and isinstance(chosen, Mapping) and key in chosen else value
        for key, value in now.items()
    }
