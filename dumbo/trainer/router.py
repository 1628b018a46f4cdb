"""What a mixture of experts adds to its loss so that its router spreads the tokens (`output_router_logits`).

transformers adds it to the loss of every micro batch whole: a step of k micro batches would have it k times, and a held-out
loss would hold it too. `Stepping.loss_of` weighs it by a micro batch's share of the step's trained tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from dumbo.interfaces import IGNORE
from dumbo.patch.modules import base_of


def router_loss(model: Any, outputs: Any) -> torch.Tensor | None:
    """The auxiliary loss as it was added to `outputs.loss`: times the model's coefficient; None where there is none."""
    found = getattr(outputs, "aux_loss", None)
    if found is None or not isinstance(found, torch.Tensor):
        return None
    base = base_of(model)
    weight = getattr(base, "router_aux_loss_coef", None)
    if weight is None:
        weight = base.config.get_text_config().router_aux_loss_coef
    return found * float(weight)


def router_part(
    model: Any, outputs: Any, labels: torch.Tensor, items: torch.Tensor, *, held: bool
) -> torch.Tensor | None:
    """What has to be added to a micro batch's loss, so that it holds its share of the router's loss; in evaluation, none.

    Args:
        labels: (B, T) of the micro batch.
        items: trained tokens of the step, on all ranks.
        held: the loss holds all of the router's already.

    Returns:
        None where the model has no such loss.
    """
    extra = router_loss(model, outputs)
    if extra is None:
        return None
    share = (labels[:, 1:] != IGNORE).sum() / items if model.training else 0.0
    part: torch.Tensor = extra * (share - float(held))
    return part
