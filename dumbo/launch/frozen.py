"""The resolved config, from the process that composed it to the ranks that run it.

It travels in the ranks' environment: it may hold secrets, which are written nowhere.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from dumbo.check import Plugins, check
from dumbo.outputs.config_hash import config_hash
from dumbo.outputs.secrets import masked

if TYPE_CHECKING:
    from dumbo.compose import Composed

VARIABLE = "DUMBO_FROZEN_CONFIG"
AT_MOST = 30_000
"""Characters of a variable: Linux takes 128 KiB each, and UTF-8 up to four bytes a character."""


@dataclass(frozen=True)
class Frozen:
    """A config that is composed no more.

    Attributes:
        config: plain values, references resolved.
        choices: group -> choice.
        config_dirs: folders typed as --config-dir.
        hash: of what counts in it; equal on all ranks or the run does not start.
        folder: the run's folder.
    """

    config: dict[str, Any]
    choices: dict[str, Any]
    config_dirs: list[str]
    hash: str
    folder: str

    def to_environment(self) -> dict[str, str]:
        """In as many variables as it takes."""
        text = json.dumps(vars(self))
        return {
            f"{VARIABLE}_{begin // AT_MOST}": text[begin : begin + AT_MOST] for begin in range(0, len(text), AT_MOST)
        }

    def plugins(self) -> Plugins:
        """The plugins, as in the process that composed."""
        from dumbo.compose import prepare_hydra

        folders = [Path(folder) for folder in self.config_dirs]
        prepare_hydra(folders, None)  # makes the modules of user folders importable
        return check(self.config, self.choices, folders)


def freeze(composed: Composed, config_dirs: tuple[Path, ...], folder: Path) -> Frozen:
    """What the ranks are to run, in which folder."""
    config = OmegaConf.to_container(composed.cfg, resolve=True)
    assert isinstance(config, dict)
    return Frozen(
        {str(key): value for key, value in config.items()},
        {str(key): value for key, value in composed.choices.items()},
        [str(folder) for folder in config_dirs],
        config_hash(masked(composed.cfg)),
        str(folder),
    )


def frozen_from_environment() -> Frozen:
    """Takes it out of the environment, so that what a rank starts does not see it."""
    parts = [name for name in os.environ if name.startswith(f"{VARIABLE}_")]
    text = "".join(os.environ.pop(name) for name in sorted(parts, key=lambda name: int(name.rpartition("_")[2])))
    return Frozen(**json.loads(text))
