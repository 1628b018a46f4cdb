"""What makes two configs the same experiment, and how they differ when they are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dumbo.cache import key_of

NOT_NUMBERS = (
    "run_dir", "sweep_dir", "resume", "repeat", "run", "launch", "tracker",
    "verify", "audit", "preview", "plan", "evaluate", "chat", "export", "report", "doctor", "sweep",
    "trainer.log_every", "trainer.save_every", "trainer.save_total_limit", "trainer.max_time", "trainer.max_bad_steps",
    "trainer.prefetch", "trainer.cuda_graphs", "trainer.async_save",
)  # fmt: skip
"""Keys that change where and how a run goes, and none of its numbers."""

CAME_LATER = {"performance": "off", "trainer.master_weights": False, "patch.chunked_loss.kernel": False}
"""Keys that older runs do not have, and what they did: such a value is as good as none."""


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"trainer": {"lr": 1}}` as `{"trainer.lr": 1}`; empty mappings stay as values."""
    return dict(_leaves(config, prefix))


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, name)
        else:
            yield name, value


def what_counts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a config that its numbers depend on."""
    return {
        key: value
        for key, value in flattened(config).items()
        if not any(key == name or key.startswith(f"{name}.") for name in NOT_NUMBERS)
        and not (key in CAME_LATER and value == CAME_LATER[key])
    }


def config_hash(config: Mapping[str, Any]) -> str:
    """Equal for configs that give the same numbers."""
    return key_of(what_counts(config))[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`trainer.lr: 1e-4 -> 3e-4`, for every leaf that counts and differs."""
    old, new = what_counts(before), what_counts(now)
    absent = object()
    return [
        f"{key}: {_said(old.get(key, absent), absent)} -> {_said(new.get(key, absent), absent)}"
        for key in [*old, *(key for key in new if key not in old)]
        if old.get(key, absent) != new.get(key, absent)
    ]


def _said(value: Any, absent: object) -> str:
    return "(absent)" if value is absent else "null" if value is None else str(value)
