"""`dumbo verify` in process: composes an experiment, proves it on a small model, and says which proofs failed.

    failed = failing_keys(tmp_path, [])                          # {} when all is well
    failed = failing_keys(tmp_path, ["patch=[lora]"], only=["packed"])

Data is prepared into a cache of the test's own: a planted bug must not be read from, or left in, another's store.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch as changed

import torch

torch.set_num_threads(1)

SMALL = (
    "model.hidden_size=32", "model.intermediate_size=64", "model.num_attention_heads=2", "trainer.max_seq_len=128",
    "trainer.global_batch_size=2", "trainer.micro_batch_size=2", "verify.num_examples=16",
)  # fmt: skip
MINE = ("mask", "tokenisation", "packed", "loss", "accumulation", "padding", "gradients")
"""Proofs that need one process and no training."""


def subject_of(folder: Path, overrides: list[str]) -> Any:
    """What `dumbo verify OVERRIDES` would prove, on a small tiny model or on the one that they choose."""
    from dumbo.check import check
    from dumbo.compose import compose, prepare_hydra
    from dumbo.verify.subject import Subject

    chosen = any(word.startswith("model=") for word in overrides)
    small = [word for word in SMALL if not (chosen and word.startswith("model."))]
    composed = compose([*prepare_hydra((), None), *small, *overrides])
    return Subject(check(composed.cfg, composed.choices), folder / "scratch", composed)


def prove_all(folder: Path, overrides: list[str] = [], only: tuple[str, ...] = MINE) -> dict[str, list[Any]]:  # noqa: B006
    """Key -> its proofs."""
    from dumbo.verify.verify import proofs, prove

    with changed.dict(os.environ, {"DUMBO_CACHE": str(folder / "cache")}):
        subject = subject_of(folder, overrides)
        return {key: prove(subject, {key: function}) for key, function in proofs().items() if key in only}


def failing(found: dict[str, list[Any]]) -> dict[str, str]:
    """Key -> what is wrong, of the proofs that do not hold."""
    return {
        key: " / ".join(f"{proof.name}: {proof.detail}" for proof in several if proof.passed is False)
        for key, several in found.items()
        if any(proof.passed is False for proof in several)
    }
