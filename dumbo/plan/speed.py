"""How long a run takes, from the tokens a second that are typed or that an earlier run of the same shape had."""

from __future__ import annotations

import heapq
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dumbo.outputs.config_hash import CAME_LATER, config_hash, flattened
from dumbo.outputs.places import short
from dumbo.outputs.runs import RUNS, facts_if_whole

SHAPE = ("model", "patch", "performance", "trainer.max_seq_len", "trainer.packing", "trainer.precision",
         "trainer.micro_batch_size", "trainer.optimizer", "trainer.master_weights")  # fmt: skip
"""Keys that a step's speed depends on. Ranks and hardware are looked at besides."""
NOT_SPEED = ("model.seed", "patch.lora.alpha", "patch.lora.dropout", "patch.lora.path")
WARM_UP = 2
"""Logged rows that are left out: the first steps are slower."""


@dataclass(frozen=True)
class Speed:
    """Tokens a second, real ones only, of all ranks; and where that is known from."""

    tokens_per_s: float
    source: str


def known_speed(
    config: Mapping[str, Any],
    ranks: int,
    hardware: Mapping[str, Any],
    here: Path = Path(),
    newest: int | None = None,
) -> Speed | None:
    """Of the newest run below `here` with this config, else with this shape, on this hardware.

    Args:
        config: resolved and masked.
        ranks: of the run that is planned.
        here: the folder that outputs/ is in.
        newest: only so many are looked at, by the date in their names; None: all.
    """
    own, shape = config_hash(config), _shape(config)
    best: tuple[bool, str, Speed] | None = None
    found_at = [path for pattern in RUNS for path in here.glob(pattern)]
    if newest is not None:
        found_at = heapq.nlargest(newest, found_at, key=lambda path: path.relative_to(here).parts[1:])
    for path in found_at:
        facts = facts_if_whole(path.parent)
        if facts.get("batch", {}).get("ranks") != ranks or not _same(facts.get("hardware", {}), hardware):
            continue
        alike = facts.get("config_hash") == own
        if not alike and _shape(_config_of(path.parent)) != shape:
            continue
        speed = _speed_of(path.parent)
        if speed is not None:
            says = "the same config" if alike else "the same model, patches and shape"
            found = Speed(speed, f"{short(path.parent.absolute())}, {says}")
            best = max(
                best or (False, "", found), (alike, str(facts.get("started", "")), found), key=lambda one: one[:2]
            )
    return best[2] if best is not None else None


def _speed_of(folder: Path) -> float | None:
    """The median of its logged steps after the first ones."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return None
    found = [row["tokens_per_s"] for row in rows if row.get("tokens_per_s")]
    return statistics.median(found[WARM_UP:]) if len(found) > WARM_UP else None


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _shape(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in flattened(config).items()
        if not (key in CAME_LATER and value == CAME_LATER[key])
        and any(key == name or key.startswith(f"{name}.") for name in SHAPE)
        and key not in NOT_SPEED
    }


def _same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    keys = ("gpu",) if "gpu" in now else ("cpu", "cpu_cores", "gpu")
    return all(before.get(key) == now.get(key) for key in keys)
