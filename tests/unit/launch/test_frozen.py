"""A config of any length reaches the ranks, and nothing that they start."""

from __future__ import annotations

import os
import subprocess
import sys

from dumbo.launch.frozen import VARIABLE, Frozen, frozen_from_environment


def test_a_config_longer_than_a_variable_may_be() -> None:
    """Linux takes 128 KiB a string; here 12,000 tokens of four bytes a character."""
    tokens = [f"<|🦣{number:05}|>" for number in range(12_000)]
    frozen = Frozen({"model": {"tokenizer": {"added_tokens": tokens}}}, {"model": "pretrained"}, [], "1234", "run")
    code = (
        "import os; from dumbo.launch.frozen import *; frozen = frozen_from_environment(); "
        "assert not [name for name in os.environ if name.startswith(VARIABLE)]; "
        "print(len(frozen.config['model']['tokenizer']['added_tokens']), frozen.config['model']['tokenizer']['added_tokens'][-1])"
    )
    own = {**os.environ, **frozen.to_environment(), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=own, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.stdout.split() == ["12000", tokens[-1]], done.stderr


def test_a_short_one_is_one_variable() -> None:
    frozen = Frozen({}, {}, [], "1234", "run")
    assert list(frozen.to_environment()) == [f"{VARIABLE}_0"]
    os.environ.update(frozen.to_environment())
    assert frozen_from_environment() == frozen
    assert f"{VARIABLE}_0" not in os.environ
