"""The model before any patch: the loss of the first batch, and which parameters train.

Pipeline: the model is loaded -> here -> patches -> `first_batch.py` holds the patched model against it.
The loss is plain: each document alone, through the model's own attention and head, cross-entropy in float32 over the
trained tokens as the store has them. No packing, no collator, no kernel, no trainer takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.func import functional_call

from dumbo.errors import ProofFailed
from dumbo.interfaces import Stage
from dumbo.model.dtype import resolved_precision
from dumbo.outputs.halvings import fitting
from dumbo.verify.excerpts import excerpts_of
from dumbo.verify.rounding import error_of_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dumbo.check import Plugins
    from dumbo.outputs.run_dir import RunDir
    from dumbo.prepare.store import PreparedSplits, Store

Examples = list["NDArray[np.int64]"]
Document = tuple["NDArray[np.int64]", "NDArray[np.bool_]"]
"""Ids (T,) and which tokens are trained (T,); the first token of a document never is."""

MOST_DOCUMENTS = 32
MOST_TOKENS = 16_384
CPU_FLOPS = 2e11
"""What the loss and its gradient may take on a CPU, in floating-point operations: one to three seconds on two cores."""
AT_ONCE = 1024
"""Tokens whose logits are held in float32 at a time."""


@dataclass
class Unpatched:
    """What the model is before any patch. Looks on while it is loaded and patched, and leaves no trace.

    Attributes:
        examples: documents of the first batch, by example.
        loss: mean over their trained tokens, in nats; None: there is nothing to compare with.
        why_not: why there is none.
        error: standard error of that mean from rounding, in nats (`rounding.py`); None: float32, or not known.
        trains: names of the parameters that are to train; patches of stage ADAPTER choose others.
    """

    plugins: Plugins
    patches: Mapping[str, Any]
    data: PreparedSplits
    run: RunDir
    examples: Examples = field(default_factory=list)
    loss: float | None = None
    error: float | None = None
    why_not: str | None = None
    trains: set[str] = field(default_factory=set)

    @cached_property
    def store(self) -> Store:
        return excerpts_of(self.data.train.store)

    def loaded(self, model: Any) -> None:
        """Before any patch."""
        with self.run.proving():
            self.trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            first = getattr(self.plugins.trainer, "first_examples", None)
            if first is None:
                self.why_not = f"{type(self.plugins.trainer).__name__} does not say what it begins with"
                return
            examples = fitting(self.run, first(self.data, self.run.ranks), self.plugins.trainer)
            self.examples = few(examples, self.store, model)
            self.why_not = self._nothing_to_compare(model)
            if self.why_not is None:
                self.loss = self._first_loss(model)

    def patched(self, name: str, patch: Any, model: Any) -> None:
        """After each patch: none of another stage than ADAPTER takes parameters out of training.

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

    def _nothing_to_compare(self, model: Any) -> str | None:
        for name, patch in self.patches.items():
            if (reason := starts_elsewhere(patch)) is not None:
                return f"patch.{name} {reason}"
        if getattr(model.config.get_text_config(), "output_router_logits", False):
            return "the router's loss is of a whole batch"
        labelled = self.store.trained_tokens(np.concatenate(self.examples))
        return None if labelled else "the first batch has no trained token"

    def _first_loss(self, model: Any) -> float:
        store, trainer = self.store, self.plugins.trainer
        documents = np.concatenate(self.examples)
        pairs = [(store.ids(document), store.trained(document)) for document in documents.tolist()]
        bf16 = resolved_precision(getattr(trainer, "precision", "auto")) == "bf16"
        placed, smoothing = OnDevice(model), smoothing_of(trainer)
        with torch.no_grad():
            total = sum_of_losses(placed, pairs, bf16=bf16, smoothing=smoothing)
        self.error = error_of_mean(placed, pairs, smoothing) if bf16 else None
        return float(total) / store.trained_tokens(documents)


def starts_elsewhere(patch: Any) -> str | None:
    """Why a model with this patch is not the one without it, where that is meant so."""
    ask = getattr(patch, "starts_elsewhere", None)
    return ask() if ask is not None else None


def approximated(patches: Mapping[str, Any]) -> str | None:
    """What patches hold or compute more coarsely, where that is meant so: "patch.NAME: …"; None: nothing."""
    said = [
        f"patch.{name}: {reason}"
        for name, patch in patches.items()
        if hasattr(patch, "approximates") and (reason := patch.approximates()) is not None
    ]
    return "; ".join(said) or None


def smoothing_of(trainer: Any) -> float:
    """Share of each target that is spread over the whole vocabulary (`trainer.extra.label_smoothing_factor`)."""
    return float(getattr(trainer, "extra", {}).get("label_smoothing_factor", 0.0))


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
    documents: Iterable[Document],
    *,
    bf16: bool,
    smoothing: float = 0.0,
    each: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """The sum of the trained tokens' losses, document by document.

    Args:
        documents: one after another.
        bf16: in the arithmetic of training under bf16.
        smoothing: share of each target that is spread over the whole vocabulary.
        each: is given each document's loss, for its gradient.
    """
    total = torch.zeros((), dtype=torch.float64)
    for ids, trained in documents:
        loss = model.losses(ids, trained, bf16=bf16, smoothing=smoothing).sum()
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

        self.model = model
        self.device = torch.empty(0, device=PartialState().device).device  # "cuda" is no other place than "cuda:0"
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        moves = any(tensor.device != self.device for tensor in tensors.values())
        self.tensors = {name: tensor.detach().to(self.device) for name, tensor in tensors.items()} if moves else None

    def losses(
        self, ids: NDArray[np.int64], trained: NDArray[np.bool_], *, bf16: bool, smoothing: float = 0.0
    ) -> torch.Tensor:
        """(N,) of a document's trained tokens; the arguments as in `sum_of_losses`."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = self(torch.from_numpy(ids)[None].to(self.device)).logits[0, :-1]
        places = torch.from_numpy(np.flatnonzero(trained[1:])).to(self.device)
        targets = torch.from_numpy(ids[1:]).to(self.device)
        parts = [
            torch.nn.functional.cross_entropy(
                logits[some].float(), targets[some], reduction="none", label_smoothing=smoothing
            )
            for some in places.split(AT_ONCE)
        ]
        return torch.cat(parts)

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
