"""How far a model with experts is from itself when nothing changes but what else is in its batch.

An expert multiplies all the tokens that are sent to it at once. How many those are depends on the other rows of the batch,
and a product of another size takes its sums in another order. So what is the same bit by bit in other models is the same
but for this noise here. Seen on random Mixtral and Qwen3-MoE in float32 on a CPU: 1e-7 of the logits with experts as
grouped products or one after another, nothing with a product for each token (`batched_mm`, whose weights are copied for
each token: too large to ask for); in bf16 on a CPU nothing. A choice of experts that is nearly even can fall otherwise
after a rounding: then a token's logits move by much more, which is measured too.

Rows of a padded batch never see each other. Replacing a row by another one changes the others by this noise alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from dumbo.patch.modules import base_of
from dumbo.verify.proof import Tolerance, larger

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Config keys that count the experts of a layer."""
DRAWS = 4
"""Rows that are put beside those that are looked at, one after another."""
MULTIPLE = 3
"""Times the noise, as the largest of the draws shows it."""


def has_experts(model: Any) -> bool:
    """Whether tokens are dealt out to experts."""
    config = base_of(model).config.get_text_config()
    return any((getattr(config, key, None) or 0) > 1 for key in EXPERTS)


def composition_noise(
    logits_of: Callable[[dict[str, torch.Tensor]], torch.Tensor], kept: Sequence[torch.Tensor], vocab_size: int
) -> float:
    """How much logits of rows move when another row of their batch is replaced: the largest root mean square of the draws;
    nan stays.

    Args:
        logits_of: (B, T, V) of a batch: input_ids and attention_mask (B, T), padded on the right.
        kept: ids (T,) of the rows that are looked at.
        vocab_size: ids of the other row are drawn below it.
    """
    width = max(len(ids) for ids in kept)
    random = np.random.default_rng(0)
    first: torch.Tensor | None = None
    largest = 0.0
    for _ in range(DRAWS):
        rows = [*kept, torch.from_numpy(random.integers(0, vocab_size, width))]
        batch = {
            "input_ids": torch.stack([torch.nn.functional.pad(ids, (0, width - len(ids))) for ids in rows]),
            "attention_mask": torch.stack([(torch.arange(width) < len(ids)).long() for ids in rows]),
        }
        logits = logits_of(batch)
        seen = torch.cat([logits[row, : len(ids)].float() for row, ids in enumerate(kept)])
        first = seen if first is None else first
        largest = larger(largest, root_mean_square(seen - first))
    return largest


def root_mean_square(numbers: torch.Tensor) -> float:
    """Over all of them; nan stays."""
    return float(numbers.double().square().mean().sqrt())


def allowed_by_experts(noise: float, dtype: torch.dtype, size: float) -> Tolerance:
    """Root mean square by which the logits of isolated documents may move.

    Args:
        noise: what `composition_noise` measured.
        dtype: what products are computed in.
        size: root mean square of the logits; one rounding of them is allowed in any case.
    """
    name = str(dtype).removeprefix("torch.")
    floor = torch.finfo(dtype).eps * size
    source = f"experts share products: {MULTIPLE} x {noise:.1e}, by which another row of a padded batch moves them"
    if MULTIPLE * noise < floor:
        source = f"experts share products: eps({name}) x {size:.3g}, the size of logits; another row moves them by {noise:.1e}"
    return Tolerance(max(MULTIPLE * noise, floor), source)
