"""How a run begins and how it ends, whatever happens in between.

begin -> claim the folder, write what was typed -> closing(the experiment) -> show_end
"""

from __future__ import annotations

import errno
import io
import logging
import secrets as random_source
import shlex
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import dumbo
from dumbo.errors import ProofFailed, RunFailed, Stopped, UserError
from dumbo.launch.world import World, asked_by_environment, join
from dumbo.outputs.config_hash import config_hash, differences
from dumbo.outputs.console import Console, clock
from dumbo.outputs.run_dir import RunDir, facts_if_whole, is_claimed, read_facts
from dumbo.outputs.secrets import masked, masked_words, masked_yaml
from dumbo.outputs.surroundings import git_state, versions
from dumbo.override_text import value_text

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
    plugins.launch.require_many()
    world = join(plugins.launch.seconds_an_exchange)
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
    run.console.log_to(run.path / ("dumbo.log" if world.main else f"rank-{world.rank}.log"))
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
    if nodes > 1 and (other := _claimed_elsewhere(plugins)) is not None:
        return other
    try:
        run = _claim(plugins, config, name)
    except UserError:
        if nodes > 1 and (other := _claimed_elsewhere(plugins)) is not None:  # it was faster, by a moment
            return other
        raise
    try:
        run.console.log_to(run.path / "dumbo.log")
        _title(run)
        _write_down(run, plugins, config, command, name)
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


def _claimed_elsewhere(plugins: Plugins) -> RunDir | None:
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
    if not is_claimed(path):
        return None
    run = RunDir(path=path, console=Console(), started=time.time(), claimed=False)
    run.console.row("run", f"{_short(path)} is another machine's: this one brings its ranks to it")
    return run


def _write_down(run: RunDir, plugins: Plugins, config: dict[str, Any], command: Command, name: str) -> None:
    """What is about to be done, into the folder; nothing for a run that is finished already."""
    if run.resuming:
        run.facts = read_facts(run.path)
        changed = _require_same(run, config)
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
        status="running", run_dir=str(run.path), name=name, error=None, patches={},
        versions=versions(), git=git_state(), started=run.facts.get("started", _now()), seed=config.get("trainer", {}).get("seed"),
    )  # fmt: skip
    run.to_track = (list(plugins.trackers.values()), config)


def _title(run: RunDir) -> None:
    run.console.heading(f"{f'dumbo {dumbo.__version__}':<40}{_short(run.path)}")


def _short(path: Path) -> str:
    with suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _word(key: str, run: RunDir) -> str:
    """`resume=FOLDER` as it can be typed into a shell, whatever the folder's name is."""
    return shlex.quote(f"{key}={value_text(_short(run.path))}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


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
    if asked.is_dir() and any(entry.name not in (".lock", "dumbo.log") for entry in asked.iterdir()):
        raise UserError(f"run_dir: the folder {asked} is not empty, and no run's.\n  Write another run_dir=FOLDER.")
    return asked, False


def _unfinished(config: Mapping[str, Any]) -> Path | None:
    """The newest run below outputs/ that did not finish and has the same config."""
    wanted = config_hash(config)
    found = [(facts["started"], path.parent) for path in Path().glob("outputs/*/*/run.json")
             if (facts := facts_if_whole(path.parent)).get("config_hash") == wanted and facts.get("status") != "finished"]  # fmt: skip
    return max(found)[1] if found else None


TAKES_EFFECT = (
    "trainer.max_steps", "trainer.num_epochs", "trainer.eval_every", "trainer.eval_at_start", "trainer.load_best_at_end",
    "trainer.num_samples", "trainer.num_answers", "trainer.max_new_tokens", "dataset.path", "dataset.eval_path", "model.path",
    "trainer.micro_batch_size",
)  # fmt: skip
"""Keys whose change is taken up on resuming: how long, what is measured, where the same files lie now, and how a step is
spread over ranks and passes (which changes no more than the last digits)."""


def _require_same(run: RunDir, config: Mapping[str, Any]) -> list[str]:
    """With resume=auto the config must be the run's; with resume=RUN what can change was typed on purpose, and is shown.

    Raises:
        UserError: another config, or a change that the checkpoint (optimizer, schedule, order of the data) would ignore.
    """
    before = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    changed = differences(before, config)
    if not changed:
        return []
    if config.get("resume") == "auto":
        listed = "\n  ".join(changed)
        raise UserError(
            f"resume=auto: the run in {run.path} was started with another config:\n  {listed}\n"
            f"  Write another run_dir=FOLDER; to go on for longer: resume={run.path} trainer.max_steps=…"
        )
    if stuck := [line for line in changed if line.partition(":")[0] not in TAKES_EFFECT]:
        listed = "\n  ".join(stuck)
        raise UserError(
            f"resume: the checkpoint fixes these, a change of them would not take effect:\n  {listed}\n"
            f"  Leave them out, or start a run of its own with them: {_word('repeat', run)}"
        )
    run.console.row("changed", "\n".join(changed))
    return changed


def silence_libraries(run: RunDir) -> None:
    """Sends what libraries log and warn of into dumbo.log instead of the terminal."""
    import transformers.utils.logging as library

    name = "dumbo.log" if run.world.main else f"rank-{run.world.rank}.log"
    handler = logging.FileHandler(run.path / name)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s", "%H:%M:%S"))
    handler.setLevel(logging.INFO)
    root = logging.getLogger()
    for old in [h for h in root.handlers if getattr(h, "of_dumbo", False)]:  # an earlier run in this process
        root.removeHandler(old)
        old.close()
    handler.of_dumbo = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    library.disable_default_handler()
    library.enable_propagation()
    library.disable_progress_bar()


@contextmanager
def closing(run: RunDir) -> Iterator[None]:
    """Runs the experiment; whatever ends it stands in run.json and dumbo.log afterwards.

    Raises:
        RunFailed: for any failure that is not the user's to mend; its text is the last line of the traceback.
    """
    try:
        yield
    except Stopped as stop:
        saved = sorted((run.path / "checkpoints").glob("step-*"))
        _end(run, "preempted", f"stopped by {stop.signal_name}")
        run.console.row(
            "stopped",
            f"{stop.signal_name}: {saved[-1].name if saved else 'nothing'} is saved.\nGo on: python -m dumbo {_word('resume', run)}",
        )
        if not run.console.fancy:
            run.console.plain(_short(run.path))
        run.release()
        raise
    except KeyboardInterrupt:
        _end(run, "failed", "Ctrl-C before anything could be saved")
        run.release()
        raise
    except (UserError, ProofFailed) as error:
        _end(run, "failed", str(error))
        run.release()
        raise
    except Exception as error:
        text = traceback.format_exc()
        with suppress(OSError):
            run.console.log(text)
        said = why_failed(error, run)
        _end(run, "failed", said)
        run.release()
        raise RunFailed(said) from error
    else:
        _end(run, "finished", None)


def _end(run: RunDir, status: str, error: str | None) -> None:
    with suppress(OSError):  # a full disk must not hide why the run failed
        run.update(status=status, error=error, ended=_now())


@contextmanager
def tracking(run: RunDir) -> Iterator[None]:
    """Starts the trackers, in the process that logs, and tells them how the run ended."""
    started, config = run.to_track
    try:
        for tracker in started if run.world.main else ():
            tracker.start(run.path, str(run.facts["name"]), config)
            run.trackers.append(tracker)  # only those that started are told of the end
        yield
    except Stopped:
        _finish_trackers(run, "preempted")
        raise
    except BaseException:
        _finish_trackers(run, "failed")
        raise
    else:
        _finish_trackers(run, "finished")


def _finish_trackers(run: RunDir, status: str) -> None:
    numbers = {
        key: float(value) for key, value in run.facts.get("metrics", {}).items() if isinstance(value, int | float)
    }
    for tracker in run.trackers:
        try:
            tracker.finish(status, numbers)
        except Exception as failure:  # said and logged: a copy of the numbers must not hide how the run itself ended
            run.console.log(traceback.format_exc())
            run.console.row("tracker", f"{type(tracker).__name__} could not end: {type(failure).__name__}: {failure}")
    run.trackers.clear()


def why_failed(error: Exception, run: RunDir) -> str:
    """A failure in the user's words."""
    return str(error) if isinstance(error, RunFailed) else _why(error, run)


LOST = (
    "Timed out waiting", "Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe",
    "No route to host", "Socket Timeout", "collective operation timeout", "remote process exited", "NCCL",
)  # fmt: skip
"""What gloo and NCCL say when they lose another rank."""


def _why(error: Exception, run: RunDir) -> str:
    """A failure in the user's words, where its cause is known; else its last lines."""
    log = f"The whole traceback is in {_short(run.path / 'dumbo.log')}"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full: {error}.\n  Checkpoints written before are intact. Free some space, then go on: {_word('resume', run)}"
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"The GPU's memory is full: {str(error).splitlines()[0]}\n  Lower trainer.micro_batch_size or trainer.max_seq_len, "
            f"or add patch=[…,gradient_checkpointing]. {log}"
        )
    if run.ranks > 1 and (lost := next((word for word in LOST if word in str(error)), None)):
        return (
            f"Another rank did not answer ({lost}): it is gone, or stuck for longer than launch.timeout.\n"
            f"  Checkpoints are whole, go on: {_word('resume', run)}  {log}"
        )
    last = traceback.format_exception_only(error)[-1].strip()
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"The run failed: {last}\n  at {frame.filename}, line {frame.lineno}, in {frame.name}\n  {log}"


def show_end(run: RunDir) -> dict[str, Any]:
    """The summary: losses, samples before and after, what to type next. Returns the metrics."""
    metrics: dict[str, Any] = run.facts.get("metrics", {})
    console = run.console
    console.row("result", "   ".join(_result(metrics)))
    for question, before, after in run.samples:
        console.row("asked", question.shown())
        console.row("", f"before    {_answer(before)}")
        console.row("", f"after     {_answer(after)}")
        console.row("", f"wanted    {_answer(question.reference)}")
    last = _short(run.path).startswith("outputs")
    named = "run=last" if last else _word("run", run)
    console.row("next", f'python -m dumbo chat {named} chat.prompt="{_example(run)}"')
    console.row("", f"model in {_short(run.path / 'model')}, numbers in {_short(run.path / 'metrics.jsonl')}")
    if not console.fancy:
        console.plain(_short(run.path))
    run.release()
    return metrics


def _result(metrics: Mapping[str, Any]) -> list[str]:
    parts = []
    if "train_loss" in metrics:
        first = f"{metrics['first_loss']:.3f} -> " if "first_loss" in metrics else ""
        parts.append(f"loss {first}{metrics['train_loss']:.3f}")
    if "eval_loss" in metrics:
        first = f"{metrics['eval_loss_before']:.3f} -> " if "eval_loss_before" in metrics else ""
        parts.append(f"held-out loss {first}{metrics['eval_loss']:.3f}")
    if "exact_match" in metrics:
        parts.append(f"exact match {100 * metrics['exact_match']:.0f}% of {metrics['questions']} held-out questions")
    if "questions_left_out" in metrics:
        parts.append(
            f"{metrics['questions_left_out']:,} held-out rows not asked: trainer.max_seq_len cuts their answers"
        )
    if "tokens_per_s" in metrics:
        parts.append(f"{metrics['tokens_per_s']:,.0f} tokens/s")
    if "seconds" in metrics:
        parts.append(f"{clock(metrics['seconds'])} in all")
    return parts


def _answer(text: str) -> str:
    from dumbo.outputs.printable import shortened

    return shortened(text, 200) or "(nothing)"


def _example(run: RunDir) -> str:
    """A question of the run's own data, when it is short enough for a command line."""
    for question, _, _ in run.samples:
        text = question.asked.strip()
        if 0 < len(text) <= 60 and text.isprintable() and not set(text) & set("\"'`$\\!"):
            return text
    return "…"
