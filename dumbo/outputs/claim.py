"""How a run begins: a folder of its own, claimed by one live process, with what is about to be done written into it.

enter -> begin (this process claims the folder), or attach (another one has: rank 0, another machine)
"""

from __future__ import annotations

import io
import os
import secrets as random_source
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import dumbo
from dumbo.errors import RunFailed, UserError
from dumbo.groups import GROUPS
from dumbo.launch import slurm
from dumbo.launch.world import World, asked_by_environment, join
from dumbo.outputs import repeated
from dumbo.outputs.config_hash import config_hash
from dumbo.outputs.console import Console
from dumbo.outputs.places import now, short
from dumbo.outputs.run_dir import RunDir
from dumbo.outputs.runs import facts_if_whole, is_claimed, read_facts
from dumbo.outputs.same_config import require_ahead, require_same
from dumbo.outputs.secrets import masked, masked_words, masked_yaml
from dumbo.outputs.surroundings import git_state, versions

if TYPE_CHECKING:
    from dumbo.check import Plugins
    from dumbo.command import Command
    from dumbo.compose import Composed


def enter(plugins: Plugins, composed: Composed, command: Command) -> RunDir:
    """The run's folder: claimed; or, for a process that torchrun started as one of several, the one rank 0 claims.

    Raises:
        UserError: as `begin`; on every rank when rank 0 cannot begin.
    """
    if not asked_by_environment():
        return begin(plugins, composed, command)
    many = getattr(plugins.launch, "many", None)
    if many is None:
        raise UserError(
            f"launch={composed.choices.get('launch')} is one process, but WORLD_SIZE is {os.environ['WORLD_SIZE']} (torchrun, accelerate "
            "launch).\n  Write launch=auto, ddp or fsdp, or start it with python -m dumbo"
        )
    world = join(many.timeout)
    world.agree("config", config_hash(masked(composed.cfg)))
    told: Any = None
    if world.main:
        try:
            run = begin(plugins, composed, command)
            told = run.attachment()
        except UserError as error:
            told = str(error)
            world.share(told)
            raise
    told = world.share(told)
    if isinstance(told, str):
        raise UserError("Rank 0 could not begin; what it said stands above.")
    if world.main:
        run.world = world
        return run
    return attach(told, world)


def attach(told: Mapping[str, Any], world: World) -> RunDir:
    """The run as a rank has it that did not claim its folder; only rank 0 speaks on the terminal."""
    silent = Console(None if world.main else io.StringIO())
    run = RunDir.attached(told, world, silent)
    run.console.log_to(run.path / run.log_name)
    return run


def begin(plugins: Plugins, composed: Composed, command: Command) -> RunDir:
    """Chooses and claims the folder, and writes down what is about to be done.

    Raises:
        UserError: the folder holds something else, cannot be written, or is in use; a resumed run's config changed.
    """
    config = masked(composed.cfg)
    patches = list(plugins.patches)
    name = "-".join([str(composed.choices.get("model", "model")), *patches])
    nodes = getattr(plugins.launch, "num_nodes", 1)
    if nodes > 1 and (other := _claimed_elsewhere(plugins, config)) is not None:
        return other
    try:
        run = _claim(plugins, config, name)
    except UserError:
        if nodes > 1 and (other := _claimed_elsewhere(plugins, config)) is not None:  # it was faster, by a moment
            return other
        raise
    try:
        run.console.log_to(run.path / "dumbo.log")
        _title(run)
        if composed.repeats is not None:
            repeated.begin(run, composed.repeats)
        _write_down(run, plugins, config, command, name, composed.choices)
    except BaseException:  # whoever mends it in this process (a notebook) must find the folder free
        run.release()
        raise
    return run


def _claim(plugins: Plugins, config: Mapping[str, Any], name: str) -> RunDir:
    folder, resuming = _folder(plugins, config, name)
    run = RunDir(
        path=folder.absolute(),
        console=Console(),
        started=time.time(),
        resuming=resuming,
        wrapper=str(getattr(plugins.launch, "wrapper", "none")),
        fsdp=dict(getattr(plugins.launch, "fsdp", {})),
        verify_quick=plugins.verify.mode == "quick",
        attn_implementation=str(getattr(plugins.model, "attn_implementation", "auto")),
    )
    run.claim()
    return run


def _claimed_elsewhere(plugins: Plugins, config: dict[str, Any]) -> RunDir | None:
    """The run of another machine, which holds its folder; None: this one is to claim it.

    Raises:
        UserError: the machines cannot know of one folder.
    """
    options = plugins.options
    asked = options.run_dir or (options.resume if options.resume != "auto" else None)
    if asked is None:
        raise UserError(
            f"launch.num_nodes={plugins.launch.num_nodes}: the machines need one folder that all of them see.\n"
            "  Write the same run_dir=FOLDER (on a shared file system) on each."
        )
    path = Path(asked).expanduser().absolute()
    if slurm.several_nodes() and slurm.node_number() > 0:
        _wait_for_first_node(path, plugins.launch.many.start_timeout)
    elif not is_claimed(path):
        return None
    run = RunDir(path=path, console=Console(), started=time.time(), claimed=False, to_track=([], config))
    run.console.row("run", f"{short(path)} is another machine's: this one brings its ranks to it")
    return run


def _wait_for_first_node(path: Path, seconds: float) -> None:
    """In SLURM the first node claims the folder: file systems without locks between machines exist."""
    end = time.monotonic() + seconds
    while not (path / ".lock").is_file():
        if time.monotonic() > end:
            raise RunFailed(f"The first node of the job has not begun the run in {path} within {seconds:g} s.")
        time.sleep(0.1)


def _write_down(
    run: RunDir, plugins: Plugins, config: dict[str, Any], command: Command, name: str, choices: Mapping[str, Any]
) -> None:
    """What is about to be done, into the folder; nothing for a run that is finished already."""
    if run.resuming:
        run.facts = read_facts(run.path)
        run.earlier = dict(run.facts)
        changed = require_same(run, config)
        require_ahead(run, config)
        if run.facts.get("status") == "finished" and not changed:
            run.console.row("resume", "this run is finished already")
            return
    run.to_write = {
        "config.yaml": yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        "overrides.yaml": yaml.safe_dump(masked_words(command.typed), allow_unicode=True),
    }
    if command.file is not None and command.file != (run.path / "experiment.yaml").resolve():
        run.to_write["experiment.yaml"] = masked_yaml(command.file.read_text(encoding="utf-8"))
    run.to_hash = config_hash(config)
    if not run.resuming:
        run.write_down()
    run.facts.pop("ended", None)
    run.update(
        status="running", tracker_failures=[], run_dir=str(run.path), name=name, error=None, patches={},
        versions=versions(), git=git_state(), started=run.facts.get("started", now()), seed=config.get("trainer", {}).get("seed"),
        choices={group: choice for group, choice in choices.items() if group in GROUPS},
    )  # fmt: skip
    run.to_track = (list(plugins.trackers.values()), config)


def _title(run: RunDir) -> None:
    run.console.heading(f"{f'dumbo {dumbo.__version__}':<40}{short(run.path)}")


def _folder(plugins: Plugins, config: Mapping[str, Any], name: str) -> tuple[Path, bool]:
    """The run's folder, and whether a run in it is gone on with."""
    options = plugins.options
    asked = Path(options.run_dir).expanduser() if options.run_dir else None
    if options.resume not in (None, "auto"):
        folder = Path(str(options.resume)).expanduser()
        if asked is not None and asked.absolute() != folder.absolute():
            raise UserError(
                f"resume={options.resume} goes on in its own folder; run_dir={options.run_dir} is another. Leave it out."
            )
        if not read_facts(folder):
            raise UserError(f"resume: '{options.resume}' is not a run's folder (there is no run.json in it).")
        return folder, True
    if options.resume == "auto" and asked is None:
        asked = _unfinished(config)
    if asked is None:
        now = datetime.now()
        return Path("outputs") / now.strftime("%Y-%m-%d") / f"{now:%H-%M-%S}-{name}-{random_source.token_hex(2)}", False
    if asked.exists() and not asked.is_dir():
        raise UserError(f"run_dir: '{asked}' is a file.")
    if read_facts(asked):
        if options.resume == "auto":
            return asked, True
        raise UserError(
            f"run_dir: there is a run in {asked} already.\n  Go on with it: resume={asked}, or write another run_dir=FOLDER."
        )
    if asked.is_dir() and not _is_unused({entry.name for entry in asked.iterdir()}):
        raise UserError(f"run_dir: the folder {asked} is not empty, and no run's.\n  Write another run_dir=FOLDER.")
    return asked, False


def _is_unused(names: set[str]) -> bool:
    """Whether a folder holds nothing of a run: at most what `verify` and `plan` leave, and what was written before run.json,
    when a kill came between.
    """
    rest = {name for name in names if not _may_be_before(name)}
    first = ("config.yaml", "overrides.yaml", "experiment.yaml", "run.json")
    return not rest or (
        ".lock" in names and all(name in first or name.startswith(tuple(f".{one}." for one in first)) for name in rest)
    )


def _may_be_before(name: str) -> bool:
    return name in (".lock", "dumbo.log", "plan.json", "verify.log") or (
        name.startswith("verify") and name.endswith(".json")
    )


def _unfinished(config: Mapping[str, Any]) -> Path | None:
    """The newest run below outputs/ that did not finish and has the same config."""
    wanted = config_hash(config)
    found = [(facts.get("started", ""), path.parent) for path in Path().glob("outputs/*/*/run.json")
             if (facts := facts_if_whole(path.parent)).get("config_hash") == wanted and facts.get("status") != "finished"]  # fmt: skip
    return max(found)[1] if found else None
