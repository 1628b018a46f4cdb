"""The model before any patch: the loss of the first batch, and which parameters train.

Pipeline: the model is loaded -> here -> patches -> `first_batch.py` holds the patched model against it.
The loss is plain: each document alone, through the model's own attention and head, cross-entropy in float32 over the
trained tokens as the store has them. No packing, no collator, no kernel, no trainer takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.func import functional_call

from dumbo.errors import ProofFailed
from dumbo.interfaces import Stage
from dumbo.model.dtype import resolved_precision

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from dumbo.check import Plugins
    from dumbo.prepare.store import PreparedSplits, Store

Examples = list["NDArray[np.int64]"]

MOST_DOCUMENTS = 32
MOST_TOKENS = 16_384
CPU_FLOPS = 2e11
"""What the loss and its gradient may take on a CPU, in floating-point operations: one to three seconds on two cores."""
AT_ONCE = 1024
"""Tokens whose logits are held in float32 at a time."""


@dataclass
class Unpatched:
    """What the model was before any patch.

    Attributes:
        examples: documents of the first batch, by example.
        loss: mean over their trained tokens, in nats; None: there is nothing to compare with.
        why_not: why there is none.
        trains: names of the parameters that are to train; those of stage ADAPTER change it.
    """

    examples: Examples
    loss: float | None
    why_not: str | None
    trains: set[str]

    def require_training(self, name: str, patch: Any, model: Any) -> None:
        """After each patch: none of its kind but stage ADAPTER takes parameters out of training.

        Raises:
            ProofFailed: this one does.
        """
        now = {key.replace("_orig_mod.", ""): value.requires_grad for key, value in model.named_parameters()}
        frozen = [key for key in sorted(self.trains) if now.get(key) is False]
        if frozen and patch.stage != Stage.ADAPTER:
            raise ProofFailed(
                f"patch.{name} takes {len(frozen)} parameters out of training ({frozen[0]} among them), and is not of the "
                f"stage that decides what trains.\n  Leave {name} out of patch=[…]; in a patch of your own: stage = Stage.ADAPTER"
            )
        self.trains = {key for key, trains in now.items() if trains}


def unpatched(
    plugins: Plugins, patches: Mapping[str, Any], model: PreTrainedModel, data: PreparedSplits, ranks: int
) -> Unpatched | None:
    """Looks at the model as it was loaded, and leaves no trace; None where the trainer does not say what it begins with.

    Args:
        patches: those that are going to be applied.
    """
    first = getattr(plugins.trainer, "first_examples", None)
    if first is None:
        return None
    examples = few(first(data, ranks), data.train.store, model)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    documents = np.concatenate(examples)
    why_not = next(
        (f"{name}: {reason}" for name, patch in patches.items() if (reason := starts_elsewhere(patch)) is not None),
        None,
    )
    if why_not is None and not data.train.store.trained_tokens(documents):
        why_not = "the first batch has no trained token"
    if why_not is not None:
        return Unpatched(examples, None, why_not, trains)
    bf16 = resolved_precision(getattr(plugins.trainer, "precision", "auto")) == "bf16"
    store = data.train.store
    pairs = [(store.ids(document), store.trained(document)) for document in documents.tolist()]
    with torch.no_grad():
        loss = float(sum_of_losses(OnDevice(model), pairs, bf16)) / store.trained_tokens(documents)
    return Unpatched(examples, loss, None, trains)


def starts_elsewhere(patch: Any) -> str | None:
    """Why a model with this patch is not the one without it, where that is meant so."""
    ask = getattr(patch, "starts_elsewhere", None)
    return ask() if ask is not None else None


def few(examples: Sequence[NDArray[np.int64]], store: Store, model: Any) -> Examples:
    """So many of a batch's documents, from its first on, as take no noticeable time; at least one, the shortest."""
    most = MOST_TOKENS
    if not torch.accelerator.is_available():
        most = min(most, int(CPU_FLOPS / (6 * sum(parameter.numel() for parameter in model.parameters()))))
    left, places = most, MOST_DOCUMENTS
    found: Examples = []
    for example in examples:
        kept = []
        for document in example.tolist():
            if store.lengths[document] <= left and places:
                left -= int(store.lengths[document])
                places -= 1
                kept.append(document)
        if kept:
            found.append(np.array(kept))
    if not found:
        every = np.concatenate(list(examples))
        found = [every[np.argmin(store.lengths[every])][None]]
    return found


def sum_of_losses(
    model: OnDevice,
    documents: Iterable[tuple[NDArray[np.int64], NDArray[np.bool_]]],
    bf16: bool,
    each: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """The sum of the trained tokens' losses, document by document.

    Args:
        documents: ids (T,) and which tokens are trained (T,); the first token of a document never is.
        bf16: in the arithmetic of training under bf16.
        each: is given each document's loss, for its gradient.
    """
    device = model.device
    total = torch.zeros((), dtype=torch.float64)
    for ids, trained in documents:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model(torch.from_numpy(ids)[None].to(device)).logits[0, :-1]
        targets = torch.from_numpy(np.where(trained, ids, -100)[1:]).to(device)
        loss = torch.zeros((), device=device)
        for part, wanted in zip(logits.split(AT_ONCE), targets.split(AT_ONCE), strict=True):
            loss = loss + torch.nn.functional.cross_entropy(part.float(), wanted, ignore_index=-100, reduction="sum")
        if each is not None and loss.requires_grad:
            each(loss)
        total += loss.detach().cpu()
    return total


class OnDevice:
    """A model where training will be, in evaluation mode.

    Weights on the CPU stay there, copies are used: patches draw new ones from the random state of the weights' device.
    """

    def __init__(self, model: Any) -> None:
        from accelerate import PartialState

        self.model, self.device = model, PartialState().device
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        moves = any(tensor.device != self.device for tensor in tensors.values())
        self.tensors = {name: tensor.detach().to(self.device) for name, tensor in tensors.items()} if moves else None

    def __call__(self, ids: torch.Tensor) -> Any:
        """What the model says to ids (1, T)."""
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        was_training = self.model.training
        self.model.eval()
        try:
            if self.tensors is None:
                return self.model(**inputs)
            return functional_call(self.model, self.tensors, kwargs=inputs)
        finally:
            self.model.train(was_training)
