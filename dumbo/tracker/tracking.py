"""Trackers beside a run: started in the process that logs, told of the end whatever it is."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dumbo.errors import Stopped

if TYPE_CHECKING:
    from dumbo.outputs.run_dir import RunDir


@contextmanager
def tracking(run: RunDir) -> Iterator[None]:
    """Starts the trackers, in the process that logs, and tells them how the run ended.

    Those of a run that is to go on start when it is sure that it can (`start_trackers`); those of a new one at once, so that
    what they lack is said before the data is prepared.
    """
    try:
        if not run.resuming:
            start_trackers(run)
        yield
    except Stopped:
        _finish_trackers(run, "preempted")
        raise
    except BaseException:
        _finish_trackers(run, "failed")
        raise
    else:
        _finish_trackers(run, "finished")


def start_trackers(run: RunDir) -> None:
    """Where they have not started yet."""
    chosen, config = run.to_track
    if run.trackers or not run.world.main:
        return
    for tracker in chosen:
        tracker.start(run.path, str(run.facts["name"]), config)
        run.trackers.append(tracker)  # only those that started are told of the end


def _finish_trackers(run: RunDir, status: str) -> None:
    """The final numbers are those of a run that has finished; any other may have some of an earlier process."""
    final = run.facts.get("metrics", {}) if status == "finished" else {}
    numbers = {key: float(value) for key, value in final.items() if isinstance(value, int | float)}
    for tracker in run.trackers:
        try:
            tracker.finish(status, numbers)
        except Exception as failure:  # said, logged and recorded: it must not hide how the run itself ended
            run.console.log(traceback.format_exc())
            text = f"{type(tracker).__name__} could not end: {type(failure).__name__}: {failure}"
            run.console.row("tracker", text)
            run.update(tracker_failures=[*run.facts.get("tracker_failures", []), text])
    run.trackers.clear()
