"""When the memory runs out in a forward or backward pass of a run of one process, its step is done again in smaller passes.

    the step           whole, with the same documents, from the random state it began with; its gradients are dropped
    the steps after    are cut into micro batches of the new size; the global batch is as before
    the held-out loss  is measured again, likewise
    CUDA graphs        take memory of their own: where they were left open they are given up first, in the same size

Trainer's loop goes on counting as many passes a step as it began with: a pass may stand for several micro batches.
What fails elsewhere (the optimizer's step), or where ranks wait for each other, rises as MemoryFull (`memory_told`), and
who started the run starts it again: without CUDA graphs, where they held memory that nobody asked them to.

Private attributes of Trainer used, with a test: _tr_loss (the sum of losses that the loop logs, as it was when the step began).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from accelerate import skip_first_batches

from dumbo.batch import Batch
from dumbo.errors import MemoryFull
from dumbo.patch.compile import compiled_layers
from dumbo.trainer.memory import RandomState, first_line, give_back, ran_out
from dumbo.trainer.sharded import wrapper_of

if TYPE_CHECKING:
    from transformers import Trainer

    from dumbo.trainer.feeding import Feeding
    from dumbo.trainer.measuring import Measuring
    from dumbo.trainer.stepping import Stepping

    class _Base(Stepping, Feeding, Measuring, Trainer):
        pass
else:
    _Base = object


@dataclass(frozen=True)
class _Begin:
    """Of a step: what it is set back to."""

    random: RandomState
    loss: torch.Tensor


class Shrinking(_Base):
    """A mixin over Trainer, beneath `Engine`, before the parts whose methods it goes round.

    Attributes:
        on_full: told of the step (from 1), the batch that did not fit and what was said; returns the batch to go on
            with, or raises. None: errors rise as they are.
        on_graphs: told of the step and what was said when CUDA graphs are given up instead.
    """

    on_full: Callable[[int, Batch, str], Batch] | None = None
    on_graphs: Callable[[int, Batch, str], None] | None = None
    _shrunk = False  # since Trainer's loop began
    _looping = False  # inside the loop, where a step has a beginning
    _begin: _Begin | None = None
    _measuring = False  # the held-out loss
    _done_again = False  # the step, in one of its passes: the others have nothing left to do
    _rest: tuple[Iterator[Any], Iterator[Any]] | None = None  # the loop's iterator, and what it is replaced by

    def batches_of_step(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro batches of a step, dealt out to as many passes as the loop is going to make."""
        self._looping, self._begin, self._done_again = True, None, False
        if not self._shrunk:
            return super().batches_of_step(epoch_iterator, num_batches, device)
        amount = len(self.order.micro_batches(self.state.global_step))
        batches, items = super().batches_of_step(self._smaller(epoch_iterator), amount, device)
        return dealt(batches, num_batches), items

    def _smaller(self, epoch_iterator: Iterator[Any]) -> Iterator[Any]:
        """What is left of the epoch in micro batches of the size they have now."""
        if self._rest is None or self._rest[0] is not epoch_iterator:
            steps = self.state.global_step % self.order.steps()
            loader = skip_first_batches(self.get_train_dataloader(), steps * self.order.batch.accumulation)
            self._rest = (epoch_iterator, iter(loader))
        return self._rest[1]

    def pass_that_fits(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of the micro batches of a pass; of the whole step, when the memory runs out in it."""
        if not self._looping:  # the proofs
            return self.counted_pass(model, inputs, num_items_in_batch)
        if self._done_again:
            return torch.zeros((), device=self.args.device)
        if self.on_full is not None and self._begin is None and self._alone:
            self._begin = _Begin(RandomState.now(self.args.device), self._tr_loss.clone())
        batches = inputs if isinstance(inputs, list) else [inputs]
        while True:
            try:
                return self._passes(model, batches, num_items_in_batch)
            except Exception as error:  # libraries wrap full memory in classes of any kind
                if not self._can_mend(error):
                    raise
                said = first_line(error)
            # Outside of the except block: nothing holds the tensors of the failed pass any more.
            model.zero_grad()
            self._make_room(self.state.global_step + 1, said)
            batches = self._from_the_beginning()

    def _passes(self, model: Any, batches: Sequence[Any], items: Any) -> torch.Tensor:
        """The last micro batch's loss; the losses of the others are added where Trainer's loop adds this one."""
        for batch in batches[:-1]:
            self._tr_loss += self.counted_pass(model, batch, items)
        return self.counted_pass(model, batches[-1], items)

    def _from_the_beginning(self) -> list[Any]:
        """Sums and random numbers as they were when the step began. Returns all of its micro batches."""
        assert self._begin is not None
        number = self.state.global_step
        self.watch.forget(number + 1)
        self._begin.random.restore(self.args.device)
        self._tr_loss.copy_(self._begin.loss)
        self._done_again = True
        batches = [self.collate([self.examples[one] for one in each]) for each in self.order.micro_batches(number)]
        self.pending.clear()
        self.pending.extend(batch.pop("documents") for batch in batches)
        return batches

    def held_out_loss(self) -> float:
        """Of all held-out documents: measured anew when the memory runs out over them."""
        model: Any = self.model
        training, self._measuring = model.training, True
        while True:
            try:
                loss: float = super().held_out_loss()
                self._measuring = False
                return loss
            except Exception as error:  # libraries wrap full memory in classes of any kind
                if not self._can_mend(error):
                    raise
                said = first_line(error)
            model.train(training)
            self._make_room(self.state.global_step, said)

    @property
    def _alone(self) -> bool:
        """Whether no other rank waits for this one, and nothing around the model remembers half a pass."""
        return self.world.size == 1 and wrapper_of(self.model_wrapped) == "none"

    def _can_mend(self, error: Exception) -> bool:
        """Whether the memory ran out, in a place where that can be mended."""
        return self.on_full is not None and self._alone and ran_out(error)

    def _make_room(self, step: int, said: str) -> None:
        """CUDA graphs that nobody asked for are given up first: as written, a micro batch of this size may fit."""
        if self._graphs_can_go:
            self.graphs, self.cuda_graphs = None, False
            if self.on_graphs is not None:
                self.on_graphs(step, self.order.batch, said)
            self.graphs_said = f"off: the memory ran out with them at step {step} ({said})"
            give_back()
        else:
            self._shrink(step, said)

    @property
    def _graphs_can_go(self) -> bool:
        """Whether CUDA graphs hold memory, and were left open."""
        return self.cuda_graphs is None and self.graphs is not None and self.graphs.hold_memory

    def _shrink(self, step: int, said: str) -> None:
        captured = self.graphs is not None
        self.forget_graphs()  # they hold a pool of memory, for batches of the size that is left
        give_back()
        assert self.on_full is not None
        self.bind_to(self.on_full(step, self.order.batch, said))
        if captured:
            self.capture_from_now_on()

    def bind_to(self, batch: Batch) -> None:
        """From here on micro batches have another size. All that is bound to their size is made anew here, and only here."""
        model: Any = self.model
        self.order = self.order.cut(batch)
        self.collate = self.collate.of(batch.micro)
        self.eval_collate = self.eval_collate.of(batch.micro) if self.eval_collate is not None else None
        self._shrunk, self._rest = True, None
        if self.ahead is not None:
            self.ahead.forget()
        if compiled_layers(model):
            torch.compiler.reset()  # torch makes so many graphs of one layer and no more: those of the old size are of no use

    @contextmanager
    def memory_told(self, asked: int | str) -> Iterator[None]:
        """The block trains; memory that ran out in it and could not be mended here rises as MemoryFull.

        Args:
            asked: the `trainer.micro_batch_size` of the config.

        Raises:
            MemoryFull: see there.
        """
        try:
            yield
        except Exception as error:
            if not ran_out(error):
                raise
            step = self.state.global_step + (not self._measuring)
            raise MemoryFull(first_line(error), step, self.order.batch, asked, self._graphs_can_go) from error


def dealt(batches: list[Any], passes: int) -> list[list[Any]]:
    """Micro batches as `passes` lists of them, in order; none is empty.

    Args:
        batches: at least as many.
    """
    bounds = [len(batches) * number // passes for number in range(passes + 1)]
    return [batches[start:end] for start, end in pairwise(bounds)]
