"""The base of a sweep: the config of its fixed words, beside the one that it was begun with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dumbo.errors import UserError
from dumbo.outputs.places import now, short, typed
from dumbo.outputs.secrets import masked_tree
from dumbo.outputs.surroundings import git_state, versions
from dumbo.sweep.folder import base_differences, read_sweep, write_facts, write_sweep


@dataclass
class Base:
    """See the module.

    Attributes:
        config: composed, not resolved, secrets masked.
        changed: how it differs from the one that the sweep was begun with, a line a key.
    """

    config: dict[str, Any] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, cfg: DictConfig) -> Base:
        raw = OmegaConf.to_container(cfg, resolve=False)
        assert isinstance(raw, dict)
        return cls(masked_tree({str(key): value for key, value in raw.items() if key not in ("hydra", "sweep")}))

    def compare(self, folder: Path, *, force: bool) -> None:
        """With that of a sweep that has jobs.

        Raises:
            UserError: it changed, and that is not forced.
        """
        self.changed = base_differences(folder, self.config)
        if self.changed and not force:
            listed = "\n  ".join(self.changed)
            raise UserError(
                f"sweep_dir: the sweep in {short(folder)} was begun with another config:\n  {listed}\n"
                f"  Restore it, or begin another sweep: {typed('sweep_dir', folder.with_name(f'{folder.name}-2'))}\n"
                "  or force it: sweep.force=true (jobs that are done stay as they are, all others begin anew)"
            )

    def record(self, folder: Path, told: Mapping[str, Any], *, compared: bool) -> None:
        """Writes sweep.json, and base.yaml where it is new or changed.

        Args:
            told: of the sweep.
            compared: it was; without a job there is nothing to compare with, and this is the base.
        """
        before = read_sweep(folder)
        facts = {
            **told,
            "started": before.get("started") or now(),
            "versions": before.get("versions") or versions(),
            "git": before.get("git") or git_state(),
        }
        if before and compared and not self.changed:
            write_facts(folder, {**before, **facts})
        else:
            write_sweep(folder, facts, self.config)
