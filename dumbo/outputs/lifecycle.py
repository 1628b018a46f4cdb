"""How a run begins and how it ends, whatever happens in between.

begin -> claim the folder, write what was typed -> closing(the experiment) -> show_end
"""

from __future__ import annotations

import errno
import logging
import secrets as random_source
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
from dumbo.outputs.config_hash import config_hash, differences
from dumbo.outputs.console import Console, clock
from dumbo.outputs.run_dir import RunDir, facts_if_whole, read_facts
from dumbo.outputs.secrets import masked, masked_words, masked_yaml
from dumbo.outputs.surroundings import git_state, versions

if TYPE_CHECKING:
    from dumbo.check import Plugins
    from dumbo.command import Command
    from dumbo.compose import Composed


def begin(plugins: Plugins, composed: Composed, command: Command) -> RunDir:
    """Chooses and claims the folder, and writes down what is about to be done.

    Raises:
        UserError: the folder holds something else, cannot be written, or is in use; a resumed run's config changed.
    """
    config = masked(composed.cfg)
    patches = list(plugins.patches)
    name = "-".join([str(composed.choices.get("model", "model")), *patches])
    folder, resuming = _folder(plugins, config, name)
    run = RunDir(
        path=folder.absolute(),
        console=Console(),
        started=time.time(),
        resuming=resuming,
        ranks=getattr(plugins.launch, "ranks", 1),
        verify_quick=plugins.verify.mode == "quick",
        attn_implementation=str(getattr(plugins.model, "attn_implementation", "auto")),
    )
    run.claim()
    try:
        run.console.log_to(run.path / "dumbo.log")
        _title(run)
        _write_down(run, plugins, config, command, name)
    except BaseException:  # whoever mends it in this process (a notebook) must find the folder free
        run.release()
        raise
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
)  # fmt: skip
"""Keys whose change is taken up on resuming: how long, what is measured, and where the same files lie now."""


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
            f"  Leave them out, or start a run of its own with them: repeat={_short(run.path)}"
        )
    run.console.row("changed", "\n".join(changed))
    return changed


def silence_libraries(run: RunDir) -> None:
    """Sends what libraries log and warn of into dumbo.log instead of the terminal."""
    import transformers.utils.logging as library

    handler = logging.FileHandler(run.path / "dumbo.log")
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
    """Runs the experiment; whatever ends it stands in run.json, dumbo.log and the trackers afterwards.

    Raises:
        RunFailed: for any failure that is not the user's to mend; its text is the last line of the traceback.
    """
    try:
        _start_trackers(run)
        yield
    except Stopped as stop:
        saved = sorted((run.path / "checkpoints").glob("step-*"))
        _end(run, "preempted", f"stopped by {stop.signal_name}")
        run.console.row(
            "stopped",
            f"{stop.signal_name}: {saved[-1].name if saved else 'nothing'} is saved.\nGo on: python -m dumbo resume={_short(run.path)}",
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
        said = str(error) if isinstance(error, RunFailed) else _why(error, run)
        _end(run, "failed", said)
        run.release()
        raise RunFailed(said) from error
    else:
        _end(run, "finished", None)


def _start_trackers(run: RunDir) -> None:
    """Only those that started are told of the end."""
    trackers, config = run.to_track
    for tracker in trackers:
        tracker.start(run.path, str(run.facts["name"]), config)
        run.trackers.append(tracker)


def _why(error: Exception, run: RunDir) -> str:
    """A failure in the user's words, where its cause is known; else its last lines."""
    log = f"The whole traceback is in {_short(run.path / 'dumbo.log')}"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full: {error}.\n  Checkpoints written before are intact. Free some space, then go on: resume={_short(run.path)}"
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"The GPU's memory is full: {str(error).splitlines()[0]}\n  Lower trainer.micro_batch_size or trainer.max_seq_len, "
            f"or add patch=[…,gradient_checkpointing]. {log}"
        )
    last = traceback.format_exception_only(error)[-1].strip()
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"The run failed: {last}\n  at {frame.filename}, line {frame.lineno}, in {frame.name}\n  {log}"


def _end(run: RunDir, status: str, error: str | None) -> None:
    with suppress(OSError):  # a full disk must not hide why the run failed
        run.update(status=status, error=error, ended=_now())
    for tracker in run.trackers:
        numbers = {
            key: float(value) for key, value in run.facts.get("metrics", {}).items() if isinstance(value, int | float)
        }
        try:
            tracker.finish(status, numbers)
        except Exception as failure:  # said and logged: a copy of the numbers must not hide how the run itself ended
            run.console.log(traceback.format_exc())
            run.console.row("tracker", f"{type(tracker).__name__} could not end: {type(failure).__name__}: {failure}")
    run.trackers.clear()


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
    named = "last" if last else _short(run.path)
    console.row("next", f'python -m dumbo chat run={named} chat.prompt="{_example(run)}"')
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
