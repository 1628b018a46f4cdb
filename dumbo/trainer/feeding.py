"""How transformers' Trainer gets its data: in the order of `sampler.py`, counted over all ranks without asking them.

Methods of Trainer called: _prepare_inputs.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Trainer

from dumbo.interfaces import IGNORE
from dumbo.launch.world import World
from dumbo.prepare.store import Store
from dumbo.trainer import long_documents
from dumbo.trainer.ahead import Ahead, moved, pulled
from dumbo.trainer.collate import Collate, Examples
from dumbo.trainer.progress import Counters, Interval
from dumbo.trainer.sampler import GlobalBatches

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    _Base = Trainer
else:
    _Base = object


class Feeding(_Base):
    """A mixin over Trainer, beneath `Engine`, whose `equip` sets what stands here."""

    world: World
    store: Store
    examples: Examples
    order: GlobalBatches
    collate: Collate
    eval_examples: Examples | None
    eval_collate: Collate | None
    counters: Counters
    interval: Interval
    pending: deque[NDArray[Any]]
    ahead: Ahead | None

    def training_batches(self) -> DataLoader[Any]:
        """Batches in the sampler's order. Not prepared by accelerate: the sampler already is what a rank trains on."""
        return torch.utils.data.DataLoader(
            self.examples, batch_sampler=self.order, collate_fn=self.collate, **self._loading(self.order.seed)
        )

    def held_out_batches(self) -> DataLoader[Any]:
        """A rank's held-out batches, in the data's order; as many on every rank."""
        assert self.eval_examples is not None
        size, ranks = self.order.batch.micro, self.world.size
        mine = range(self.world.rank, len(self.eval_examples), ranks)
        rounds = math.ceil(math.ceil(len(self.eval_examples) / ranks) / size)
        batches = [list(mine[start : start + size]) for start in range(0, rounds * size, size)]
        return torch.utils.data.DataLoader(
            self.eval_examples, batch_sampler=batches, collate_fn=self.eval_collate, **self._loading(0)
        )

    def _loading(self, seed: int) -> dict[str, Any]:
        """How batches are fetched. A generator of their own: neither loading nor evaluating moves the random state."""
        workers = self.args.dataloader_num_workers
        return {
            "num_workers": workers,
            "prefetch_factor": self.args.dataloader_prefetch_factor if workers else None,
            "multiprocessing_context": self.args.dataloader_multiprocessing_context if workers else None,
            "in_order": self.args.dataloader_in_order,
            "persistent_workers": self.args.dataloader_persistent_workers and workers > 0,
            "pin_memory": self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            "generator": torch.Generator().manual_seed(seed),
        }

    def batches_of_step(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """The micro batches of a step and the trained tokens in all of them; counts, and times the waiting."""
        began = time.perf_counter()
        take = pulled if self.ahead is None else self.ahead.take
        batches = take(epoch_iterator, num_batches)
        self.interval.waited += time.perf_counter() - began
        self.interval.steps += 1
        for batch in batches:
            self.pending.append(batch.pop("documents"))
        documents = self.documents_of_step(self.state.global_step)
        lengths = self.store.lengths[documents]
        trained = self.store.trained_tokens(documents)
        self.counters.trained_tokens += trained
        self.counters.documents += len(documents)
        self.counters.tokens += int(lengths.sum())
        self.interval.add(lengths)
        if device.type == "cuda":
            batches = [moved(batch, device) for batch in batches]
        # filled on the device: copying a number there would wait for all that was launched before
        return batches, torch.full((), max(1, trained), dtype=torch.long, device=device)

    def on_device(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """On the device, where it is not yet (proofs, evaluation)."""
        there: dict[str, Any] = super()._prepare_inputs(inputs)
        long_documents.tell(inputs, there)
        return there

    def documents_of_step(self, number: int) -> NDArray[np.int64]:
        """The documents of an optimizer step (from 0) on all ranks: known without asking them, the order is a function."""
        return np.concatenate([self.examples[example] for example in self.order.step(number).tolist()])

    def items_of(self, batches: Sequence[dict[str, Any]], device: torch.device) -> torch.Tensor:
        """What the sum of the tokens' losses is divided by: the trained tokens of these batches, on all ranks."""
        own = torch.tensor(sum(trained_tokens(batch) for batch in batches))
        # a step of cut-off rows may have none: its loss is 0, not 0/0
        return self.world.total(own).clamp(min=1).to(device)


def trained_tokens(batch: dict[str, Any]) -> int:
    """Tokens of a batch that bear the loss: labels (B, T) unshifted, the first of a row has nothing before it."""
    return int((batch["labels"][:, 1:] != IGNORE).sum())
