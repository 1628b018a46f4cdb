"""What comes of a run when its ranks have ended: from what they wrote, what the launcher saw, and what was heard."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dumbo.errors import RunFailed, Stopped
from dumbo.launch.addresses import Meeting
from dumbo.launch.endings import Ending
from dumbo.launch.launcher import THREAD, Launcher, wait_for_earlier
from dumbo.launch.processes import YOUNG, Processes, node_folder
from dumbo.launch.ranks import Ranks
from dumbo.outputs.failure import NO_ANSWER

DONE, TOLD = Ending("done", result={"metrics": {"loss": 1.0}}), Ending("stopped", "SIGTERM", 143)
KILL, TERM = -signal.SIGKILL, -signal.SIGTERM


class Ended:
    """Two ranks of one of two machines, after their end."""

    def __init__(self, folder: Path) -> None:
        meeting: Any = Meeting.__new__(Meeting)
        object.__setattr__(meeting, "endpoint", "a:1")
        self.ranks = Ranks(folder, 2, 2, meeting, 60.0, False)
        self.launcher = Launcher(folder, 2, 2, meeting, 60.0)

    def wrote(self, *found: Ending) -> Ended:
        for rank, ending in enumerate(found):
            ending.write(self.ranks.folder, rank)
        return self

    def heard(self, number: int) -> Ended:
        self.ranks._signals._hear(number, None)  # type: ignore[arg-type]
        return self

    def saw(self, codes: dict[int, int], silent: tuple[int, ...] = (), error: Exception | None = None) -> Ended:
        self.launcher.exit_codes, self.launcher.error, self.ranks._silent = codes, error, list(silent)
        return self

    @property
    def result(self) -> Ending:
        return self.ranks._ending(self.launcher, None)


def test_all_done(tmp_path: Path) -> None:
    """Whatever became of them, and of the launcher, after that."""
    ended = Ended(tmp_path).wrote(DONE, Ending("done")).heard(signal.SIGINT).saw({1: KILL}, error=RuntimeError("gone"))
    assert ended.result.result == {"metrics": {"loss": 1.0}}


@pytest.mark.parametrize("codes", [{0: KILL, 1: KILL}, {0: 1, 1: 1}, {}])
def test_nobody_said_a_word(codes: dict[int, int], tmp_path: Path) -> None:
    """They were gone before this process had seen them."""
    with pytest.raises(RunFailed, match=r"Rank 0 was killed|Rank 0 ended with exit code 1|Of 2 ranks here 0 said"):
        Ended(tmp_path).saw(codes).result  # noqa: B018


def test_one_is_done_and_the_other_gone(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="Rank 1 was killed by SIGKILL"):
        Ended(tmp_path).wrote(DONE).saw({1: KILL}).result  # noqa: B018


def test_one_was_gone_before_anybody_looked(tmp_path: Path) -> None:
    """The other, which was seen, is ended by the launcher because of it; or writes that it was stopped."""
    ended = Ended(tmp_path).saw({0: TERM, 1: KILL}, silent=(0,))
    ended.ranks._seen = {0: 2**22 + 1}
    with pytest.raises(RunFailed, match="Rank 1 was killed by SIGKILL"):
        ended.result  # noqa: B018
    with pytest.raises(RunFailed, match="Rank 1 was killed by SIGKILL"):
        ended.wrote(TOLD).saw({1: KILL}).result  # noqa: B018


def test_what_was_heard_here_is_no_lost_machine(tmp_path: Path) -> None:
    """The other machine's ranks heard the warning a moment before, and left: the job is to be put back into its queue."""
    lost, told = Ending("failed", f"{NO_ANSWER} (Connection closed by peer)", 1), Ending("stopped", "SIGUSR2", 0)
    ended = Ended(tmp_path).wrote(lost, told)
    with pytest.raises(RunFailed, match=NO_ANSWER):
        ended.result  # noqa: B018
    with pytest.raises(Stopped, match="SIGUSR2"):
        ended.heard(signal.SIGUSR2).result  # noqa: B018


@pytest.mark.parametrize("name", ["max_time", "SIGUSR1"])
def test_what_no_launcher_sends_is_a_stop_whatever_came_of_the_launcher(name: str, tmp_path: Path) -> None:
    told = Ending("stopped", name, 0)
    with pytest.raises(Stopped, match=name):
        Ended(tmp_path).wrote(told, told).saw({}, error=ConnectionError("the store left first")).result  # noqa: B018


def test_an_earlier_launcher_that_waits_for_machines_starts_nothing_in_a_later_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits = threading.Event()
    thread = threading.Thread(target=waits.wait, name=THREAD, daemon=True)
    thread.start()
    monkeypatch.setattr("dumbo.launch.launcher.TIDIES", 0.1)
    with pytest.raises(RunFailed, match="still waits for other machines"):
        wait_for_earlier()
    monkeypatch.setattr("dumbo.launch.launcher.TIDIES", 60.0)
    threading.Timer(0.5, waits.set).start()  # one that is about to end is waited for: memory is given back meanwhile
    wait_for_earlier()
    assert not thread.is_alive()


def test_a_child_that_is_no_rank(tmp_path: Path) -> None:
    """What another thread starts meanwhile has the folder in its environment, too."""
    own = {**os.environ, "DUMBO_LAUNCH_FOLDER": str(tmp_path)}
    with (
        subprocess.Popen(["sleep", "30"], env={**own, "RANK": "3"}) as rank,
        subprocess.Popen(["sleep", "30"], env=own) as other,
    ):
        time.sleep(0.2)  # until they are what they were started as
        assert Processes(tmp_path).children() == {3: rank.pid}
        rank.kill()
        other.kill()


def test_a_lost_machine_is_no_stop(tmp_path: Path) -> None:
    """The launcher ends its ranks by SIGTERM when the others do not answer; nobody asked this process to stop."""
    ended = Ended(tmp_path).wrote(TOLD, TOLD).saw({}, error=ConnectionError("no store"))
    ended.ranks._was_ready = True
    with pytest.raises(RunFailed, match="The other machines were lost"):
        ended.result  # noqa: B018
    with pytest.raises(Stopped):
        ended.heard(signal.SIGTERM).result  # noqa: B018


def test_told_before_it_could_listen(tmp_path: Path) -> None:
    """SLURM tells all processes of a job: one that dies of it was stopped as the run was."""
    with pytest.raises(Stopped) as stopped:
        Ended(tmp_path).wrote(TOLD).heard(signal.SIGTERM).saw({1: TERM}, silent=(1,)).result  # noqa: B018
    assert stopped.value.exit_code == 143
    with pytest.raises(RunFailed, match="Rank 1 was killed by SIGKILL"):
        Ended(tmp_path).wrote(TOLD).heard(signal.SIGTERM).saw({1: KILL}, silent=(1,)).result  # noqa: B018


def test_folders_of_others_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's processes have numbers that mean nothing here: what is locked lives."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "dumbo-launch-999999-left").mkdir()
    (tmp_path / "dumbo-launch-999999-young").mkdir()
    with node_folder() as own:
        for folder in (own, tmp_path / "dumbo-launch-999999-left"):
            os.utime(folder, times=(time.time() - 2 * YOUNG,) * 2)
        with node_folder() as other:
            assert sorted(tmp_path.iterdir()) == sorted([own, other, tmp_path / "dumbo-launch-999999-young"])
    assert [path.name for path in tmp_path.iterdir()] == ["dumbo-launch-999999-young"]
