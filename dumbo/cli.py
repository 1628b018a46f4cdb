"""argv -> verb and composed config -> exit code.

    parse (command.py) -> compose (compose.py) -> check (check.py) -> the verb

Exit codes: 0 done, 1 a run failed, 2 something to mend in config, data or paths, 3 an audit gate, 4 a failed
proof, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from dumbo import __version__
from dumbo.command import Command, parse
from dumbo.errors import GateFailed, ProofFailed, RunFailed, Stopped, UserError
from dumbo.leaving import leaving, owned

IN_RANKS = ("train", "plan", "doctor")
"""Verbs that may be started as one of several processes."""


def command() -> int:
    """`python -m dumbo` and the installed command, whose process is theirs."""
    return main(owns=True)


def main(argv: Sequence[str] | None = None, *, owns: bool = False) -> int:
    """The command line. Returns the exit code.

    Args:
        owns: nothing else goes on in this process: one that was stopped ends in time.
    """
    if owns:
        owned()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a narrow terminal encoding must not end a run
    code = _guarded(argv, owns)
    if code and int(os.environ.get("WORLD_SIZE", "1")) > 1:  # one of torchrun's: the others may never answer a goodbye
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _guarded(argv: Sequence[str] | None, owns: bool) -> int:
    try:
        return _dispatch(parse(sys.argv[1:] if argv is None else argv))
    except (UserError, RunFailed, GateFailed, ProofFailed) as error:
        print(_printable(str(error)), file=sys.stderr)
        return error.exit_code
    except Stopped as stop:
        if owns:
            leaving(stop.exit_code)
        return stop.exit_code
    except KeyboardInterrupt:
        if owns:
            leaving(130)
        print("Stopped (Ctrl-C).", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `dumbo preview | head`
        sys.stderr.close()
        return 0


def run_from_python(overrides: list[str], config_dir: str | None = None) -> dict[str, Any]:
    """`dumbo.run`: composes and trains in this process."""
    from dumbo.check import check
    from dumbo.legacy.file import translated
    from dumbo.recorded import composed_for
    from dumbo.repeat import with_recorded
    from dumbo.train import train

    command = parse([*([f"--config-dir={config_dir}"] if config_dir else []), *overrides])
    if command.verb != "train" or command.data or command.multirun or command.flags or command.info or command.help:
        raise UserError("dumbo.run trains one experiment: give it overrides, and no verb, data file or flag.")
    command = with_recorded(translated(command) if command.file is not None else command)
    composed = composed_for(command)
    plugins = check(composed.cfg, composed.choices, command.config_dirs)
    return train(plugins, composed, command)


def _dispatch(command: Command) -> int:
    if command.version:
        print(f"dumbo {__version__}")
        return 0
    if command.help:
        from dumbo.help import help_text

        print(help_text(command))
        return 0
    if command.data is not None:
        from dumbo.look import as_preview

        command = as_preview(command)
    if command.file is not None:
        from dumbo.legacy.file import translated

        command = translated(command)
    if command.info is not None:
        from dumbo.help import info_text

        print(info_text(command))
        return 0
    return _compose_and_run(command)


def _compose_and_run(command: Command) -> int:
    from dumbo.compose import prepare_hydra, show
    from dumbo.recorded import composed_for, with_recorded_values
    from dumbo.repeat import with_recorded

    _refuse_ranks(command)
    command = with_recorded(command)
    if command.multirun or command.flags:
        command = with_recorded_values(command)
    if command.multirun:
        return _sweep(command)
    overrides = [*prepare_hydra(command.config_dirs, command.file), *command.overrides]
    if command.flags:
        show(overrides, command.flags)
        return 0
    return _run_verb(command, composed_for(command))


def _refuse_ranks(command: Command) -> None:
    """Raises UserError where one of several processes was started for what is one process's work."""
    from dumbo.launch.world import asked_by_environment

    if not asked_by_environment() or (command.verb in IN_RANKS and not command.multirun):
        return
    verb = "preview" if command.verb == "look" else command.verb
    what, how = ("a sweep", "-m …") if command.multirun else (verb, verb)
    raise UserError(
        f"{what} runs in one process, but WORLD_SIZE is above 1.\n"
        f"  Start it with python -m dumbo {how}, without torchrun (or unset WORLD_SIZE)"
    )


def _run_verb(command: Command, composed: Any) -> int:
    from dumbo.check import check

    plugins = check(composed.cfg, composed.choices, command.config_dirs)
    if command.verb == "look":
        from dumbo.look import look

        return look(plugins, command)
    if command.verb == "preview":
        from dumbo.preview import preview

        return preview(plugins, composed, command)
    if command.verb == "evaluate":
        from dumbo.evaluate.evaluate import evaluate

        return evaluate(plugins, composed, command)
    if command.verb == "verify":
        from dumbo.verify.verify import verify

        return verify(plugins, composed, command)
    if command.verb == "plan":
        from dumbo.plan.plan import plan

        return plan(plugins, composed, command)
    if command.verb == "chat":
        from dumbo.chat import chat

        return chat(plugins.options, plugins.chat, command.config_dirs)
    if command.verb == "export":
        from dumbo.export.export import export

        return export(plugins, command)
    if command.verb == "report":
        from dumbo.outputs.report.verb import report

        return report(plugins.options, plugins.report, command.paths)
    if command.verb == "sweep":
        from dumbo.sweep.verb import act

        return act(str(command.action), str(command.folder), plugins.sweep)
    if command.verb == "doctor":
        from dumbo.doctor import doctor

        return doctor(plugins.doctor)
    from dumbo.train import train

    if plugins.options.run is not None:
        raise UserError(
            "run= is the run that evaluate, chat, export and report read; training reads none.\n"
            "  Write dumbo VERB run=…, or resume=… to go on with a run, repeat=… to do it again."
        )
    train(plugins, composed, command)
    return 0


def _sweep(command: Command) -> int:
    from dumbo.compose import prepare_hydra
    from dumbo.compose import sweep as run_sweep
    from dumbo.override_text import value_text
    from dumbo.sweep.finish import finish
    from dumbo.sweep.runner import Runner
    from dumbo.sweep.sweep import Sweep

    if command.flags:
        raise UserError(f"The command line: -m runs a sweep; {command.flags[0]} only shows one run.\n  Leave one out.")
    if command.verb != "train":
        raise UserError(f"-m sweeps over train; it cannot sweep over {command.verb}.")
    with Sweep.begin(command) as sweep, Runner.of(sweep) as runner:
        overrides = [*prepare_hydra(sweep.command.config_dirs, sweep.command.file), *sweep.command.overrides]
        run_sweep([*overrides, f"sweep_dir={value_text(str(sweep.folder))}"], runner.job, sweep.open)
        return finish(runner)


def _printable(text: str) -> str:
    from dumbo.outputs.printable import printable

    return printable(text, keep="\n")
