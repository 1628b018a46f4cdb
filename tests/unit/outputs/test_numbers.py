"""Numbers as JSON has them."""

from __future__ import annotations

import json

import numpy as np
import torch

from dumbo.outputs.numbers import python_numbers


def test_a_trainers_scalars_become_pythons() -> None:
    metrics = {"a": np.float32(0.5), "b": torch.tensor(3), "c": 1.25, "d": "text", "e": [1], "f": np.bool_(True)}
    found = python_numbers(metrics)
    assert found == {"a": 0.5, "b": 3, "c": 1.25, "d": "text", "e": [1], "f": True}
    assert json.loads(json.dumps(found)) == found
