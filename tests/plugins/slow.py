"""A patch whose passes take a time of their own, so that a limit comes before the end on any machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

from dumbo.interfaces import Stage


@dataclass(frozen=True, kw_only=True)
class Slow:
    """Changes no number.

    Args:
        seconds: that each pass waits.
    """

    seconds: float = 0.2

    stage: ClassVar[Stage] = Stage.LOAD

    def apply(self, model: Any) -> Any:
        model.register_forward_pre_hook(lambda *given: time.sleep(self.seconds))
        return model
