"""The ways a command can end badly, each with its exit code (README, "Exit codes")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dumbo.batch import Batch


class UserError(ValueError):
    """What the user can mend: says what was set, what was found, what to write instead. Exit code 2."""

    exit_code = 2


class ConfigError(UserError):
    """All faults of one configuration together, so that nobody mends them one start at a time."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = list(faults)
        super().__init__("\n\n".join(self.faults))


class RunFailed(RuntimeError):
    """A run that began and could not go on: disk full, a bad checkpoint. Exit code 1."""

    exit_code = 1


class MemoryFull(RunFailed):
    """The memory ran out in training, where this process cannot go on by itself; whoever started it may start it again.

    Args:
        text: what ran out, and where.
        step: the optimizer step that it was in, or after which the held-out loss was measured; from 1.
        batch: the arithmetic that did not fit.
        asked: the `trainer.micro_batch_size` of the config.
        graphs: CUDA graphs that nobody asked for held some of it: the batch may fit without them.
    """

    def __init__(self, text: str, step: int, batch: Batch, asked: int | str, graphs: bool = False) -> None:
        super().__init__(text)
        self.text, self.step, self.batch, self.asked, self.graphs = text, step, batch, asked, graphs


class GateFailed(RuntimeError):
    """An audit went over a threshold of ``audit.fail_on`` or ``preview.fail_on``. Exit code 3."""

    exit_code = 3


class ProofFailed(RuntimeError):
    """A proof did not hold on this model and this data: the numbers would have been wrong. Exit code 4."""

    exit_code = 4


class Stopped(Exception):
    """A signal ended the run after a checkpoint was saved.

    Args:
        signal_name: as ``SIGINT``.
        exit_code: 130 for SIGINT, 143 for SIGTERM, 0 for SIGUSR1, SIGUSR2 and ``trainer.max_time``.
    """

    def __init__(self, signal_name: str, exit_code: int) -> None:
        super().__init__(signal_name)
        self.signal_name = signal_name
        self.exit_code = exit_code
