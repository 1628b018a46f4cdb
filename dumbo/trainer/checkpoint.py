"""Checkpoints that are complete or absent.

Written into a staging folder, with a manifest of sizes and hashes (`manifest.py`), brought to the disk (fsync), renamed. A
folder called step-000100 is therefore whole; its manifest is checked when it is read all the same, because disks lie.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dumbo.cache import fsync_tree
from dumbo.errors import RunFailed
from dumbo.launch.world import DISK, World
from dumbo.outputs.whole_file import settle
from dumbo.trainer import manifest

if TYPE_CHECKING:
    from dumbo.trainer.beside import Beside

Write = Callable[[Path], object]

PREFIX = "step-"
ALMOST_NOTHING = 1 << 20
"""Bytes free below which a disk is full, whatever a library says."""


class BadCheckpoint(RunFailed):
    """A checkpoint whose files are not what its manifest says."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they lie; with several ranks a file system that all of them see.
        keep: how many to keep, the best one not counted.
        world: the ranks; each writes its part, rank 0 makes the whole of it visible.
    """

    folder: Path
    keep: int
    world: World = field(default_factory=World)

    def path(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step:06d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        names = [path.name.removeprefix(PREFIX) for path in self.folder.glob(f"{PREFIX}*") if path.is_dir()]
        return sorted(int(name) for name in names if name.isdigit())

    def save(self, step: int, write: Write, best_step: int | None, beside: Beside | None = None) -> Path:
        """Writes the checkpoint of a step, then drops those no longer kept.

        Args:
            write: writes into the folder it is given; what it returns, if that can be called, writes the rest.
            best_step: its checkpoint is kept.
            beside: does the rest while training goes on, and says later whether it could; None: all is done here.

        Raises:
            RunFailed: it could not be written (disk full); the older ones are as they were.
        """
        target = self.path(step)
        staging = self.folder / self.world.share(f".{target.name}.{os.getpid()}")
        rest: list[Callable[[], object]] = []

        def first() -> None:
            left = write(staging)
            if callable(left):
                rest.append(left)

        def finish(world: World) -> None:
            self._together(target, staging, lambda: [part() for part in rest], world)
            self._together(target, staging, lambda: self._complete(staging, target, best_step), world, rank_0_only=True)

        self._together(target, staging, lambda: self._begin(staging), self.world, rank_0_only=True)
        self._together(target, staging, first, self.world)
        if beside is None:
            finish(self.world)
        else:
            beside.start(lambda: finish(beside.world))
        return target

    def _begin(self, staging: Path) -> None:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)

    def _complete(self, staging: Path, target: Path, best_step: int | None) -> None:
        manifest.write(staging)
        fsync_tree(staging)
        if target.exists():  # a corrupt one, passed over on resuming
            self._remove(target)
        staging.rename(target)
        settle(self.folder)
        for later in [
            other for other in self.steps() if other > int(target.name.removeprefix(PREFIX))
        ]:  # passed over on resuming: of another future
            self._remove(self.path(later))
        self._rotate(best_step)

    def _together(
        self, target: Path, staging: Path, part: Callable[[], object], world: World, *, rank_0_only: bool = False
    ) -> None:
        """A part of saving; when it fails on one rank, it has failed on all, and nothing half written stays."""
        failure: Exception | None = None
        try:
            if world.main or not rank_0_only:
                part()
        except Exception as error:  # raised on every rank, once all have said how it went
            failure = error
        why = (
            None if failure is None else self._why(failure, target)
        )  # before the staging folder, which fills the disk, is gone
        world.barrier(DISK)
        first = next((said for said in world.gather(why) if said is not None), None)
        if first is None:
            return
        if world.main:
            shutil.rmtree(staging, ignore_errors=True)
        raise RunFailed(first) from failure

    def _why(self, error: Exception, target: Path) -> str:
        free = shutil.disk_usage(self.folder if self.folder.is_dir() else self.folder.parent).free
        full = free < ALMOST_NOTHING or _says_full(error)
        reason = f"the disk is full ({free / 2**20:,.0f} MiB free)" if full else f"{type(error).__name__}: {error}"
        kept = ", ".join(f"{PREFIX}{step:06d}" for step in self.steps()) or "none yet"
        remedy = "Free some space" if full else "Mend that"
        return (
            f"The checkpoint {target.name} could not be written: {reason}.\n"
            f"  Older checkpoints are intact: {kept}. {remedy}, then go on with resume={self.folder.parent}"
        )

    def _rotate(self, best_step: int | None) -> None:
        steps = self.steps()
        for step in steps[: max(0, len(steps) - self.keep)]:
            if step != best_step:
                self._remove(self.path(step))

    def _remove(self, checkpoint: Path) -> None:
        gone = self.folder / f".old-{checkpoint.name}.{os.getpid()}"
        checkpoint.rename(gone)  # a checkpoint half deleted must not look like one
        shutil.rmtree(gone, ignore_errors=True)

    def clean(self) -> None:
        """Removes what a killed process left half written."""
        if not self.world.main:
            return
        for leftover in (*self.folder.glob(f".{PREFIX}*"), *self.folder.glob(".old-*")):
            shutil.rmtree(leftover, ignore_errors=True)

    def newest_good(self, say: Callable[[str], None]) -> Path | None:
        """The newest checkpoint whose files are as its manifest says; the ones passed over are named to `say`.

        Raises:
            BadCheckpoint: there are checkpoints, and none is good.
        """
        faults = []
        for step in reversed(self.steps()):
            if (fault := manifest.verify(self.path(step))) is None:
                return self.path(step)
            faults.append(fault)
            say(f"{fault}; the one before it is tried.")
        if faults:
            raise BadCheckpoint(
                "No checkpoint of this run is whole:\n  "
                + "\n  ".join(faults)
                + f"\n  Nothing was changed. Restore one in {self.folder}, or remove that folder to begin again from the start."
            )
        return None


def _says_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is a full disk; libraries wrap the system's error in their own."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).lower()
        if getattr(seen, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(
            word in text for word in ("os error 28", "os error 27", "no space left", "storagefull", "file too large")
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
