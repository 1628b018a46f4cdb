"""`dumbo verify`: proofs by numbers on this model and a sample of this data, before anybody trains for a night.

check -> the experiment as it would train, on a sample (`subject.py`) -> one proof after another -> table, verify.json

A proof that fails, or that an error ends, makes exit code 4 after the others have run. What stops all of them (Ctrl-C, a
signal, what `train` would refuse) leaves what was proven until then in verify.json.
"""

from __future__ import annotations

import io
import json
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import dumbo
from dumbo.errors import ProofFailed, RunFailed, Stopped, UserError
from dumbo.launch.single import one_process
from dumbo.outputs.console import Console
from dumbo.suggest import did_you_mean

if TYPE_CHECKING:
    from dumbo.check import Plugins
    from dumbo.command import Command
    from dumbo.compose import Composed
    from dumbo.verify.proof import Proof, ProofFunction
    from dumbo.verify.subject import Subject
    from dumbo.verify.table import Table


def proofs() -> dict[str, ProofFunction]:
    """Key (`verify.only=[KEY]`) -> proof, in the order in which they run: what is cheap and most often wrong first."""
    from dumbo.verify.accumulation import accumulation
    from dumbo.verify.determinism import determinism
    from dumbo.verify.gradients import gradients
    from dumbo.verify.loss import loss
    from dumbo.verify.packed import packed
    from dumbo.verify.padding import padding
    from dumbo.verify.references import references
    from dumbo.verify.resumed import resumed
    from dumbo.verify.tokenisation import tokenisation
    from dumbo.verify.turns import mask

    return {
        "mask": mask,
        "tokenisation": tokenisation,
        "packed": packed,
        "loss": loss,
        "accumulation": accumulation,
        "padding": padding,
        "gradients": gradients,
        "references": references,
        "determinism": determinism,
        "resume": resumed,
    }


def verify(plugins: Plugins, composed: Composed, command: Command) -> int:
    """Proves, and says so.

    Raises:
        UserError: what `train` would refuse; `verify.only` names no proof.
        ProofFailed: at least one proof does not hold, or was ended by an error.
    """
    from dumbo.verify.report import LOG, report_folder, write_report
    from dumbo.verify.table import Table

    text = plugins.verify.format == "text"
    console = Console() if text else Console(stream=_nowhere())
    console.heading(f"dumbo {dumbo.__version__}   verify")
    one_process()
    chosen = chosen_proofs(plugins.verify.only)
    began = time.time()
    with report_folder(plugins.options.run_dir, composed.choices) as folder, scratch_folder() as scratch:
        subject = subject_of(plugins, scratch, composed, command)
        table = Table(console)
        table.opened(subject)
        found: list[Proof] = []
        try:
            with ended_by_sigterm():
                prove(subject, chosen, table, folder / LOG, found)
        except BaseException as end:
            if found:
                ended = "Ctrl-C" if isinstance(end, KeyboardInterrupt) else str(end)
                file, _ = write_report(folder, subject, found, time.time() - began, ended)
                table.stopped(found, file)
            raise
        file, earlier = write_report(folder, subject, found, time.time() - began)
    table.closed(found, time.time() - began, file, earlier)
    if not text:
        from dumbo.preview import json_line

        print(json_line(json.loads(file.read_text(encoding="utf-8"))))
    require_all(found)
    return 0


def chosen_proofs(only: list[str]) -> Mapping[str, ProofFunction]:
    """Those of `verify.only`, all when it is empty.

    Raises:
        UserError: a name that no proof has.
    """
    known = proofs()
    for name in only:
        if name not in known:
            raise UserError(
                f"verify.only: there is no proof '{name}'.{did_you_mean(name, list(known))}\n  proofs: {', '.join(known)}"
            )
    return {name: proof for name, proof in known.items() if not only or name in only}


def subject_of(
    plugins: Plugins, scratch: Path, composed: Composed | None = None, command: Command | None = None
) -> Subject:
    """The experiment to be proven; libraries speak into its scratch folder."""
    from dumbo.outputs.lifecycle import silence_libraries
    from dumbo.verify.subject import Subject

    subject = Subject(plugins, scratch, composed, command)
    silence_libraries(subject.run)
    return subject


def prove(
    subject: Subject,
    chosen: Mapping[str, ProofFunction],
    table: Table | None = None,
    log: Path | None = None,
    found: list[Proof] | None = None,
) -> list[Proof]:
    """Runs the proofs in order; one that fails, or that an error ends, keeps none of the others from running.

    Args:
        table: told of each as it is done.
        log: a file for the tracebacks of errors.
        found: a list to be filled, for those who want what there is when this is stopped.

    Raises:
        RefusedError: `train` would refuse this experiment, so that nothing is left to prove.
    """
    from dumbo.verify.proof import DoesNotApplyError, Proof, RefusedError, exact

    found = [] if found is None else found
    for name, function in chosen.items():
        if table is not None:
            table.begins(name)
        try:
            result = function(subject)
        except (RefusedError, Stopped):
            raise
        except ProofFailed as error:
            result = exact(name, "", str(error))
        except DoesNotApplyError as reason:
            result = Proof(
                name=name, compared="", difference=None, tolerance=None, source="", passed=None, detail=str(reason)
            )
        except Exception as error:  # of this proof alone: it does not hold, and the others are proven all the same
            result = _ended(name, error, log)
        if isinstance(result, Proof) and result.error is not None:
            subject.release()  # what it left of the model, and of its memory
        several = [result] if isinstance(result, Proof) else list(result)
        for proof in several:
            if table is not None:
                table.row(proof)
        found += several
    return found


def _ended(name: str, error: Exception, log: Path | None) -> Proof:
    """A proof that an error has ended."""
    from dumbo.verify.proof import Proof

    kind = type(error).__name__
    said = str(error) if isinstance(error, UserError | RunFailed) else f"{kind}: {error}".rstrip(": ")
    if log is not None:
        with suppress(OSError), log.open("a", encoding="utf-8") as file:  # a full disk must not hide what it was
            file.write(f"{time.strftime('%H:%M:%S')} proof: {name}\n{traceback.format_exc()}\n")
        said += f"\nNothing is proven of {name}. The traceback is in {log.name}."
    return Proof(
        name=name, compared="", difference=None, tolerance=None, source="", passed=False, detail=said, error=kind
    )


def require_all(found: list[Proof]) -> None:
    """Raises ProofFailed, naming each proof that does not hold; also where all were left out, which is no pass."""
    failed = [proof.name + " (an error)" * (proof.error is not None) for proof in found if proof.passed is False]
    if failed:
        raise ProofFailed(
            f"{len(failed)} of {len(found)} proofs do not hold: {', '.join(failed)}. Do not train on this."
        )
    if not any(proof.passed for proof in found):
        raise ProofFailed("Nothing was proven: all proofs were left out.\n  Leave verify.only away, or name others.")


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends this process as Ctrl-C does: what there is is written. Trainings within have handlers of their own."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(signal.Signals(number).name, 143)

    if threading.current_thread() is not threading.main_thread():  # others cannot have handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="dumbo-verify-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _nowhere() -> io.StringIO:
    return io.StringIO()
