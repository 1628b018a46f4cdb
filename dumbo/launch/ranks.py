"""Watches the ranks of a run on this machine, and leaves nothing behind.

torch's launcher starts them, in a thread (`launcher.py`). The system kills a rank when this process dies.

    SIGINT, SIGTERM, SIGUSR1, SIGUSR2 here -> the same to every rank: they finish the step, save and end (`forwarding.py`)
    a rank fails -> the others have `grace` seconds, then they are killed
    no rank is ready after `start_timeout` -> all are killed
    all are done -> those that do not leave are killed after LEAVING seconds
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from dumbo.errors import MemoryFull, RunFailed, Stopped
from dumbo.launch.addresses import Meeting
from dumbo.launch.endings import Ending, cause, endings
from dumbo.launch.environment import changed_environment, for_ranks
from dumbo.launch.forwarding import Forwarding
from dumbo.launch.frozen import Frozen
from dumbo.launch.launcher import Launcher, wait_for_earlier
from dumbo.launch.processes import Processes, alive
from dumbo.outputs.failure import NO_ANSWER
from dumbo.trainer.signals import interruptible

GRACE, GRACE_STOPPED = 5.0, 12.0
"""Seconds the other ranks have to end by themselves when one has failed; when one has stopped, or trackers have last words."""
LAST_WORDS = 2.0
"""Seconds the launcher has to end by itself when all ranks of this machine are gone."""
LEAVING = 60.0
"""Seconds in which a rank that is done has to leave: a thread of a library may hold it."""
LOOKS = 0.1
"""Seconds between looks at the ranks."""


@dataclass
class Ranks:
    """The ranks of one node.

    Args:
        folder: of this node, empty: pids, endings, the launcher's own files.
        here: ranks on this machine.
        nodes: machines.
        meeting: where several machines meet; None with one.
        start_timeout: seconds until all must be ready.
        cuda: one GPU a rank, else the CPU.
        grace: seconds that the others have to end by themselves when one has failed.

    Attributes:
        kept: ranks that were done and did not leave.
    """

    folder: Path
    here: int
    nodes: int
    meeting: Meeting | None
    start_timeout: float
    cuda: bool
    grace: float = GRACE
    kept: set[int] = field(default_factory=set)
    _signals: Forwarding = field(init=False)
    _seen: dict[int, int] = field(default_factory=dict)
    _silent: list[int] = field(default_factory=list)
    _noticed: bool = False
    _was_ready: bool = False

    def __post_init__(self) -> None:
        self._signals = Forwarding(self.folder)

    @property
    def _processes(self) -> Processes:
        return Processes(self.folder)

    def run(self, frozen: Frozen) -> Ending:
        """Runs them to their end.

        Args:
            frozen: the config.

        Returns:
            rank 0's ending, when every rank is done; with several machines, when it was on this one.

        Raises:
            Stopped, UserError, ProofFailed, RunFailed (MemoryFull among them): what ended a rank first.
        """
        launcher = Launcher(self.folder, self.here, self.nodes, self.meeting, self.start_timeout)
        with interruptible():
            wait_for_earlier()
        with changed_environment(self._environment(frozen)), self._signals.listening():
            launcher.start()
            late = self._watch(launcher)
        if not self._noticed:
            self._silent = self._gone_silent()  # they ended between two looks
        return self._ending(launcher, late)

    def _ending(self, launcher: Launcher, late: RunFailed | None) -> Ending:
        """Rank 0's, or what there is to raise."""
        found = endings(self.folder)
        if self._all_done(found):  # whatever became of them, and of the launcher, after that
            return found.get(0, Ending("done"))
        unseen = [rank for rank in launcher.exit_codes if rank not in self._known()]  # gone before anybody looked
        died = {rank: launcher.exit_codes.get(rank, 1) for rank in (*self._silent, *unseen)}
        why = cause(found, {rank: code for rank, code in died.items() if not self._signals.ended(code)})
        stopped = self._signals.stopped()
        if isinstance(why, Stopped) and why.signal_name == "SIGTERM" and stopped is None and launcher.error is not None:
            why = None  # the launcher ended them, when it had lost the other machines
        if stopped is not None and (why is None or isinstance(why, MemoryFull) or str(why).startswith(NO_ANSWER)):
            raise stopped  # with full memory they are not started again for somebody who wants them to end
        if late is not None and not isinstance(why, RunFailed | ValueError):
            raise late
        if why is not None:
            raise why
        if launcher.error is not None:
            raise RunFailed(launcher.failed(were_ready=self._was_ready)) from launcher.error
        said = f"Of {self.here} ranks here {len(found)} said how they ended, and none failed."
        raise cause(found, launcher.exit_codes) or RunFailed(said)

    def _environment(self, frozen: Frozen) -> dict[str, str | None]:
        own = {"DUMBO_LAUNCH_FOLDER": str(self.folder), **frozen.to_environment()}
        interface = self.meeting.interface if self.meeting else ""
        return {**for_ranks(self.here, cuda=self.cuda, interface=interface), **own}

    # ---- watching ---------------------------------------------------------------------------------------------

    def _watch(self, launcher: Launcher) -> RunFailed | None:
        """Waits for the launcher's end; kills what does not end in time. Returns why, when the start took too long."""
        began = time.monotonic()
        failed_at: float | None = None
        done_at: float | None = None
        gone_at: float | None = None
        late: RunFailed | None = None
        while launcher.lives(LOOKS):
            self._signals.pass_on(self._processes.pids().values())
            now = time.monotonic()
            if failed_at is None and self._somebody_failed():
                failed_at, self._noticed = now, True
                self._silent = self._gone_silent()  # by themselves, and not because of us
            if failed_at is None and self._signals.insisted is not None:
                failed_at, self._noticed = now, True
            if self.nodes > 1 and self._signals.stopped() is not None and not self._known():
                return None  # the other machines have not come: nobody is there to be told
            grace = self._grace()
            if failed_at is not None and now - failed_at > grace:
                if self._processes.living():
                    self._processes.kill()
                    gone_at = None
                elif now - (gone_at := gone_at or now) > LAST_WORDS:
                    return late  # torch's launcher waits for a machine that does not answer any more
            if done_at is None and self._all_done(endings(self.folder)):
                done_at = now
            if done_at is not None and now - done_at > LEAVING:
                self.kept |= {rank for rank, pid in self._known().items() if alive(pid)}
                self._processes.kill()
            if not self._ready() and late is None and failed_at is None and now - began > self.start_timeout:
                late = RunFailed(
                    f"The ranks were not ready after {self.start_timeout:g} s ({len(self._processes.pids())} of {self.here} on this "
                    f"machine had started, {self._counted_ready()} were ready).\n"
                    "  What they said is in rank-*.log; write launch.start_timeout=SECONDS where it takes longer here."
                )
                failed_at, self._noticed = now - GRACE_STOPPED, True
        return late

    def _ready(self) -> bool:
        self._was_ready = self._was_ready or self._counted_ready() >= self.here
        return self._was_ready

    def _counted_ready(self) -> int:
        return len(list(self.folder.glob("ready-*")))

    def _all_done(self, found: dict[int, Ending]) -> bool:
        return [ending.kind for ending in found.values()] == ["done"] * self.here

    def _somebody_failed(self) -> bool:
        """A rank wrote that it failed, or is gone without a word."""
        return any(ending.kind != "done" for ending in endings(self.folder).values()) or bool(self._gone_silent())

    def _known(self) -> dict[int, int]:
        """Rank -> process, of all that were started, as far as they were seen."""
        said = self._processes.pids()
        if len(said) < self.here:
            self._seen |= self._processes.children()
        return {**self._seen, **said}

    def _gone_silent(self) -> list[int]:
        gone = self._processes.gone(self._known())
        found = endings(self.folder)  # after looking who is gone: a rank writes first, then goes
        return [rank for rank in gone if rank not in found]

    def _grace(self) -> float:
        kinds = {ending.kind for ending in endings(self.folder).values()}
        return GRACE_STOPPED if kinds <= {"stopped", "done"} and not self._silent and kinds else self.grace
