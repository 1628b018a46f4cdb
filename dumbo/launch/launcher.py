"""torch's elastic launcher (what torchrun is) in a thread, so that the main thread is free for signals.

It starts the ranks of this machine, each `python -m dumbo.launch.rank` in a session of its own, and waits for them. Its
store takes a free port, or meets the other machines' where there are several. When a rank fails it sends the others
SIGTERM and, half a minute later, SIGKILL.

Source: https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dumbo.errors import RunFailed
from dumbo.launch.addresses import Meeting
from dumbo.trainer.signals import WARNINGS

THREAD = "dumbo's ranks"
TIDIES = 10.0
"""Seconds that an earlier one has to end in, whose ranks are gone."""
MONITORS = 0.1
"""Seconds between its looks at the ranks."""


def wait_for_earlier() -> None:
    """Until an earlier launcher of this process has ended. Called before the environment holds what new ranks are to run.

    Raises:
        RunFailed: it still waits for other machines, and would start its ranks in the new run.
    """
    for earlier in [thread for thread in threading.enumerate() if thread.name == THREAD]:
        earlier.join(TIDIES)
        if earlier.is_alive():
            raise RunFailed(
                "An earlier run of this process still waits for other machines (launch.start_timeout says how long).\n"
                "  Wait for its end, or start Python anew."
            )


@dataclass
class Launcher:
    """One start of the ranks.

    Args:
        folder: for its own files.
        here: ranks on this machine.
        nodes: machines.
        meeting: where several machines meet; None with one.
        start_timeout: seconds until all machines must have come.

    Attributes:
        exit_codes: rank -> code, of those that failed, as soon as all have ended; negative: the signal that ended it.
        error: what went wrong in the launcher itself.
    """

    folder: Path
    here: int
    nodes: int
    meeting: Meeting | None
    start_timeout: float
    exit_codes: dict[int, int] = field(default_factory=dict)
    error: Exception | None = None
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True, name=THREAD)
        self._thread.start()

    def lives(self, seconds: float) -> bool:
        """Whether it is still at work, after waiting so long for its end."""
        assert self._thread is not None, "not started"
        self._thread.join(seconds)
        return self._thread.is_alive()

    def failed(self, *, were_ready: bool) -> str:
        """What `error` means.

        Args:
            were_ready: the ranks of all machines had met.
        """
        said = f"{type(self.error).__name__}: {self.error}"
        if self.meeting is None:
            return f"The ranks could not be started: {said}"
        if were_ready:
            return f"The other machines were lost: there is no answer from {self.meeting.endpoint} any more ({said})."
        return (
            f"The {self.nodes} machines did not meet at {self.meeting.endpoint} within {self.start_timeout:g} s ({said}).\n"
            f"  Start the same command on {self.nodes} machines; launch.rdzv_endpoint must be reachable from all of them."
        )

    def _run(self) -> None:
        from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
        config = LaunchConfig(
            min_nodes=self.nodes,
            max_nodes=self.nodes,
            nproc_per_node=self.here,
            run_id="dumbo",
            rdzv_backend="c10d",
            rdzv_endpoint=self.meeting.endpoint if self.meeting else "localhost:0",
            rdzv_configs={"timeout": self.start_timeout, "join_timeout": self.start_timeout, **self._who_hosts()},
            local_addr=self.meeting.address if self.meeting else None,
            max_restarts=0,
            monitor_interval=MONITORS,
            logs_specs=DefaultLogsSpecs(log_dir=str(self.folder / "torchrun")),
        )
        # SLURM may tell every process of a job at once: a rank that cannot hear yet gets it when it can (signals.py).
        signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)
        try:
            elastic_launch(config, sys.executable)("-m", "dumbo.launch.rank")
        except ChildFailedError as failed:
            self.exit_codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        except Exception as error:  # `Ranks` raises it, in the main thread
            self.error = error

    def _who_hosts(self) -> dict[str, Any]:
        return {"is_host": str(self.meeting.hosts)} if self.meeting else {}
