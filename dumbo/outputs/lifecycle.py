"""How a run ends, whatever ends it: it stands in run.json and dumbo.log, and the folder is free again.

enter (`claim.py`) -> closing(the experiment) -> show_end (`summary.py`)
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dumbo.errors import GateFailed, ProofFailed, RunFailed, Stopped, UserError
from dumbo.outputs.failure import explained
from dumbo.outputs.places import now, short, typed
from dumbo.outputs.repeated import compare_losses
from dumbo.outputs.report.write import FILE as REPORT
from dumbo.outputs.report.write import report_on
from dumbo.outputs.run_dir import RunDir
from dumbo.trainer.signals import undisturbed


def silence_libraries(run: RunDir) -> None:
    """Sends what libraries log and warn of into dumbo.log instead of the terminal."""
    import transformers.utils.logging as library

    handler = logging.FileHandler(run.path / run.log_name)
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
        RunFailed: for any failure that is not the user's to mend.
    """
    try:
        with explained(run):
            yield
    except Stopped as stop:
        with undisturbed():
            _stopped(run, stop)
            run.release()
        raise
    except KeyboardInterrupt:
        with undisturbed():
            if not run.refused():
                _end(run, "failed", "Ctrl-C before anything could be saved")
            run.release()
        raise
    except (UserError, GateFailed, ProofFailed, RunFailed) as error:
        if not run.refused():
            _end(run, "failed", str(error))
        run.release()
        raise
    else:
        compare_losses(run)
        _end(run, "finished", None)


def _stopped(run: RunDir, stop: Stopped) -> None:
    if run.refused():
        run.console.row(
            "stopped", f"{stop.signal_name}: the run is as it was; what was typed now has changed nothing in it."
        )
        return
    saved = sorted((run.path / "checkpoints").glob("step-*"))
    _end(run, "preempted", f"stopped by {stop.signal_name}")
    run.console.row(
        "stopped",
        f"{stop.signal_name}: {saved[-1].name if saved else 'nothing'} is saved.\nGo on: python -m dumbo {typed('resume', run.path)}",
    )
    if not run.console.fancy:
        run.console.plain(short(run.path))


def _end(run: RunDir, status: str, error: str | None) -> None:
    with suppress(OSError):  # a full disk must not hide why the run failed
        run.update(status=status, error=error, ended=now())
    if report_on(run) and status != "finished" and (run.path / "metrics.jsonl").is_file():
        run.console.row("report", short(run.path / REPORT))
