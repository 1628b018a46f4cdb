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
        except Exception as failure:  # said, logged and recorded: it must not hide how the run itself ended
            run.console.log(traceback.format_exc())
            text = f"{type(tracker).__name__} could not end: {type(failure).__name__}: {failure}"
            run.console.row("tracker", text)
            run.update(tracker_failures=[*run.facts.get("tracker_failures", []), text])
    run.trackers.clear()
