"""Held-out loss and perplexity of each source: a mean over the trained tokens, each row alone and right-padded.

No packing, no patch that makes things faster: what is computed is the definition, and the same for every model.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dumbo.generate import answering
from dumbo.interfaces import IGNORE
from dumbo.outputs.console import Console
from dumbo.patch.modules import base_of
from dumbo.trainer.collate import Collate

if TYPE_CHECKING:
    from dumbo.evaluate.subject import Subject
    from dumbo.prepare.store import Split

LOGITS_AT_ONCE = 1 << 28
"""Numbers in the logits of a batch at most (1 GiB in float32); one row is always computed."""


@dataclass
class Tally:
    """What was added up: the negative log likelihood in nats, trained tokens, rows."""

    nats: float = 0.0
    tokens: int = 0
    rows: set[int] = field(default_factory=set)

    def facts(self) -> dict[str, Any]:
        """loss, perplexity, trained_tokens, rows; without the first two where no token is trained."""
        counted = {"trained_tokens": self.tokens, "rows": len(self.rows)}
        if not self.tokens:
            return counted
        loss = self.nats / self.tokens
        return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf, **counted}


def held_out_loss(subject: Subject, split: Split, batch_size: int, console: Console) -> dict[str, Tally]:
    """Source (file or hub id) -> what was added up over its rows."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    model: Any = subject.model
    base = base_of(model)
    vocabulary = int(base.config.get_text_config().vocab_size)
    keeps = "logits_to_keep" in inspect.signature(base.forward).parameters
    pad = subject.tokenizer.pad_token_id
    collate = Collate(split.store, "padded", pad if pad is not None else 0)
    with console.counter("measuring") as bar, answering(model, subject.bf16):
        done = 0
        for documents in _batches(split, batch_size, vocabulary):
            batch = collate([np.array([document]) for document in documents])
            for document, nats, tokens in zip(documents, *_row_losses(model, batch, keeps), strict=True):
                tally = tallies[split.store.source(document).file]
                tally.nats += nats
                tally.tokens += tokens
                tally.rows.add(int(split.store.origin[document, 0]))
            done += len(documents)
            bar.update("loss", done)
    return dict(sorted(tallies.items()))


def _batches(split: Split, most: int, vocabulary: int) -> Iterator[list[int]]:
    """Documents of like length together, the longest first: what does not fit does not fit at the beginning."""
    order = split.documents[np.argsort(-split.lengths, kind="stable")]
    start = 0
    while start < len(order):
        length = int(split.store.lengths[order[start]])
        size = max(1, min(most, LOGITS_AT_ONCE // (length * vocabulary)))
        yield order[start : start + size].tolist()
        start += size


def _row_losses(model: Any, batch: dict[str, Any], keeps: bool) -> tuple[list[float], list[int]]:
    """The sum of each row's token losses, in nats, and how many tokens that is.

    Args:
        batch: input_ids, labels, attention_mask, (B, T) each.
        keeps: whether the model can leave out the logits of places that bear no loss.
    """
    targets = batch["labels"][:, 1:].to(model.device)
    places = torch.nonzero((targets != IGNORE).any(0)).flatten()
    if not len(places):
        return [0.0] * len(targets), [0] * len(targets)
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    if keeps:
        logits = model(**inputs, use_cache=False, logits_to_keep=places).logits
    else:
        logits = model(**inputs, use_cache=False).logits[:, places]
    targets = targets[:, places]
    losses = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none"
    )
    return losses.double().sum(1).tolist(), (targets != IGNORE).sum(1).tolist()


def merged(losses: dict[str, Tally], answers: dict[str, Any]) -> dict[str, Any]:
    """Numbers of all sources together, then `sources`: those of each.

    Args:
        answers: what `exam` found.
    """
    total = Tally()
    for tally in losses.values():
        total.nats += tally.nats
        total.tokens += tally.tokens
        total.rows |= tally.rows
    by_source = answers.pop("sources", {})
    sources = {name: {**tally.facts(), **by_source.get(name, {})} for name, tally in losses.items()}
    return {**total.facts(), **answers, "sources": sources}
