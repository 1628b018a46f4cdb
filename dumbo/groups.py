"""The groups of the config, conf/GROUP/CHOICE.yaml, and what a class chosen in each must offer (interfaces.py)."""

from __future__ import annotations

GROUPS: dict[str, tuple[str, ...]] = {
    "model": ("load_tokenizer", "load_model"),
    "patch": ("apply",),
    "dataset": ("load",),
    "formatter": ("format",),
    "trainer": ("train",),
    "launch": ("launch",),
    "tracker": ("start", "log", "finish"),
}
"""Each config group and the methods its classes must have."""

LIST_GROUPS = ("patch", "tracker")
"""Groups that take a list of choices, each under its own key."""
