"""Whether an installed FlashAttention 3 or 4 is faster than our kernels, and as right: measured once, before the model is loaded.

Called by `auto.py` where tiles are to be added. Where no such package lies in Python's path nothing is done, and no package is
imported. Else a child process (`flash_race_child.py`) takes a pack of the data's own documents forward and backward through
each, one child for each package: torch's switch holds for a whole process, and what a package breaks is broken in there. What it
found lies in dumbo's cache, by the GPU, the versions, the heads and the documents, so that every run and rank of a machine has the
same kernels. A child that failed or took too long may have had the GPU with others: it is tried again after a day.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dumbo.cache import cache_folder, key_of, one_at_a_time

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from dumbo.trainer.flash import Name

TOKENS = 65_536
"""Of the pack; a longer document is cut."""
SAVES = 0.03
"""So much less time, or more, makes another kernel the faster one."""
PATIENCE = 300.0
"""Seconds for a child, most of which compiling takes."""
AGAIN = 86_400.0
"""Seconds after which one that failed is tried again."""
FORM = 2
"""Of the answers in the cache: another one is raced for anew."""
CHILD = [sys.executable, "-m", "dumbo.patch.flash_race_child"]
"""The child; the file that it answers to comes behind."""


@dataclass(frozen=True)
class Raced:
    """What came of one implementation.

    Attributes:
        name: "FA3" or "FA4".
        said: in words.
        ms: forward and backward through all layers, in milliseconds; None: it failed, or is not right.
        ours_ms: the same of tiles.
        failed_at: when the child failed or took too long, which says little of the package (s since 1970).
    """

    name: Name
    said: str
    ms: float | None = None
    ours_ms: float | None = None
    failed_at: float | None = None

    @property
    def faster(self) -> bool:
        return self.ms is not None and self.ours_ms is not None and self.ms <= (1 - SAVES) * self.ours_ms


@dataclass(frozen=True)
class Race:
    """Who takes part, on what.

    Attributes:
        files: implementation -> the file it is taken from, and when that was changed.
        layers: ((heads, key-value heads, width, window or None), how many layers) of each kind.
        bounds: where the documents of the pack begin, and its end.
    """

    files: dict[Name, list[Any]]
    layers: list[tuple[tuple[int, int, int, int | None], int]]
    bounds: list[int]

    @classmethod
    def of(cls, skeleton: PreTrainedModel, lengths: NDArray[np.integer[Any]], files: Mapping[Name, list[Any]]) -> Race:
        """For a model, whose weights need not be there, and the lengths (documents,) of what is trained on."""
        from dumbo.patch.attention_layers import heads_of

        return cls(dict(files), list(heads_of(skeleton).items()), pack(lengths))

    @property
    def key(self) -> str:
        """Equal for races that end in the same way."""
        import torch

        from dumbo import __version__

        return key_of({"race": asdict(self), "form": FORM, "dumbo": __version__, "torch": torch.__version__,
                       "gpu": [torch.cuda.get_device_name(), torch.cuda.get_device_capability()]})  # fmt: skip

    def result(self) -> list[Raced]:
        """What the cache says, and the children of those of which it says nothing."""
        file = cache_folder("flash") / f"{self.key}.json"
        with one_at_a_time(file):
            before = [Raced(**one) for one in json.loads(file.read_text())] if file.is_file() else []
            found = {one.name: one for one in before if one.failed_at is None or time.time() - one.failed_at < AGAIN}
            for name in self.files:
                if name in found:
                    continue
                found[name] = self._measured(name, file)
                staging = file.with_suffix(f".{os.getpid()}")
                staging.write_text(json.dumps([asdict(one) for one in found.values()]))
                staging.replace(file)  # what is known stays known, whatever becomes of the next child
            return [found[name] for name in self.files]

    def _measured(self, name: Name, file: Path) -> Raced:
        from dumbo.plan.measure import child_environment

        answer = file.with_suffix(f".{name}.{os.getpid()}")
        told = {"name": name, "layers": self.layers, "bounds": self.bounds}
        try:
            done = subprocess.run([*CHILD, str(answer)], input=json.dumps(told), capture_output=True, text=True,
                                  env=child_environment(os.environ), timeout=PATIENCE, check=False)  # fmt: skip
            if done.returncode == 0 and answer.is_file():
                return Raced(**json.loads(answer.read_text()))
            last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
            why = f"failed, exit code {done.returncode}: {last}"
        except subprocess.TimeoutExpired:
            why = f"took more than {PATIENCE:.0f} s"
        finally:
            answer.unlink(missing_ok=True)
        return Raced(
            name, f"timing {name} {why} (tried again after a day, or when {file} is removed)", failed_at=time.time()
        )


def installed() -> dict[Name, list[Any]]:
    """The implementations whose file lies in Python's path: the file, and when it was changed (ns). Nothing is imported."""
    from dumbo.trainer.flash import PACKAGES

    files = {name: _file_of(module) for name, module in PACKAGES.items()}
    return {name: [str(file), file.stat().st_mtime_ns] for name, file in files.items() if file is not None}


def _file_of(module: str) -> Path | None:
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None
    files = (Path(place, *rest).with_suffix(".py") for place in spec.submodule_search_locations or ())
    return next((file for file in files if file.is_file()), None)


def pack(lengths: NDArray[np.integer[Any]]) -> list[int]:
    """Where documents of a pack begin, drawn from all, and its end; the last one is cut."""
    drawn = np.random.default_rng(0).choice(lengths, min(len(lengths), TOKENS))
    ends = np.cumsum(np.resize(drawn, -(-TOKENS // max(1, int(drawn.min())))))
    return [0, *ends[ends < TOKENS].tolist(), TOKENS]
