"""Trackers beside a run: started in the process that logs, told of the end whatever it is."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dumbo.errors import RunFailed, Stopped, UserError
from dumbo.launch.forwarding import asked_for
from dumbo.launch.world import DISK
from dumbo.trainer.signals import EXIT_CODES, broken_off, passed_over, undisturbed

if TYPE_CHECKING:
    from dumbo.outputs.run_dir import RunDir

LAST_WORDS = 10.0
"""Seconds that a tracker has to end in, of a run that did not finish."""


@contextmanager
def tracking(run: RunDir) -> Iterator[None]:
    """Starts the trackers, in the process that logs, and tells them how the run ended; of one that has finished all ranks wait for that.

    Those of a run that is to go on start when data and model have shown that it can (`start_trackers`); those of a new one at
    once, so that what they lack is said before the data is prepared (in ranks that are started here it has been by then).
    """
    try:
        if not run.resuming:
            start_trackers(run)
        yield
    except Stopped:  # in the training loop, and all ranks agreed
        _finish_trackers(run, "preempted")
        raise
    except KeyboardInterrupt:  # outside of it, or a second Ctrl-C
        _finish_trackers(run, "preempted" if asked_for() else "failed")
        raise
    except BaseException:
        _finish_trackers(run, "failed")
        raise
    else:
        with passed_over() as heard:  # the run has finished, whatever is asked of it now
            _finish_trackers(run, "finished")
            try:
                run.world.barrier(DISK)  # what rank 0 writes is there when any of them returns
            except RuntimeError as error:  # gloo's: a rank is gone
                if not heard:
                    raise
                raise Stopped(heard[0], EXIT_CODES[heard[0]]) from error  # another one had not finished


def start_trackers(run: RunDir) -> None:
    """Where they have not started yet.

    Raises:
        UserError: what a tracker lacks.
        RunFailed: it could not start.
    """
    chosen, config = run.to_track
    if run.trackers or not run.world.main:
        return
    for tracker in chosen:
        try:
            tracker.start(run.path, str(run.facts["name"]), config)
        except (UserError, Stopped):
            raise
        except Exception as failure:  # its words, which may be those of a lost connection, are no other rank's
            raise RunFailed(
                f"{_failed(tracker, 'start', failure)}.\n  Mend it, or leave it out of tracker=[…]"
            ) from failure
        run.trackers.append(tracker)  # only those that started are told of the end


def tell(run: RunDir, row: Mapping[str, Any], note: Callable[[str, str], None]) -> None:
    """A row of metrics.jsonl to every tracker. One that cannot take it gets no more: training is worth more than a copy.

    Args:
        note: says a text under a label.
    """
    numbers = {key: value for key, value in row.items() if key != "step" and value is not None}
    for tracker in [tracker for tracker in run.trackers if tracker not in run.mute]:
        try:
            tracker.log(numbers, row["step"])
        except Exception as failure:  # said, logged and recorded; metrics.jsonl has every number
            run.mute.append(tracker)  # of the end it is told all the same
            text = f"{_failed(tracker, 'log', failure)}: it gets no more rows"
            note("tracker", f"{text}. metrics.jsonl has every number")
            _record(run, text)


def _finish_trackers(run: RunDir, status: str) -> None:
    """The final numbers are those of a run that has finished; any other may have some of an earlier process.

    Where a run ends early somebody waits for it, a scheduler that kills or the launcher: trackers get their seconds, and no
    more. What is asked for of a run that has finished breaks off the tracker, and the run is finished all the same.
    """
    final = run.facts.get("metrics", {}) if status == "finished" else {}
    numbers = {key: float(value) for key, value in final.items() if isinstance(value, int | float)}
    for tracker in run.trackers:
        try:
            with undisturbed(0.0) if status == "finished" else broken_off(LAST_WORDS):
                tracker.finish(status, numbers)
        except (Exception, KeyboardInterrupt) as failure:  # said, logged and recorded: the run ended as it did
            text = _failed(tracker, "end", failure)
            run.console.row("tracker", text)
            _record(run, text)
    run.trackers.clear()
    run.mute.clear()


def _failed(tracker: Any, what: str, failure: BaseException) -> str:
    broken = isinstance(failure, KeyboardInterrupt)
    why = "broken off" if broken else f"{type(failure).__name__}: {failure}"
    return f"{type(tracker).__name__} could not {what}: {why}"


def _record(run: RunDir, text: str) -> None:
    """Of the failure that is being handled."""
    run.console.log(traceback.format_exc())
    run.update(tracker_failures=[*run.facts.get("tracker_failures", []), text])
