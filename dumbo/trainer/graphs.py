"""CUDA graphs of a micro batch's forward and backward pass: the GPU replays them without a launch from Python.

Used by `stepping.py` (`trainer.cuda_graphs`). A small model's kernels are shorter than launching them takes: at 135 M
parameters a step of 16 k tokens is 3,000 launches. Batches with room (`collate.Room`) come in few kinds (`graph_kinds.py`).
Each kind goes the same way, and every pass on it trains:

    the first time    as it is written: layers and loss are compiled, kernels chosen
    the second time   as it is written; then the same is captured, which computes nothing
    the third time    both, on a batch that it was not captured on: gradients and loss must be the same (`SAME`)
    from then on      tensors are copied to where the graph reads them, and it is replayed

Where it is left open whether they are used, they have to pay (`paying.py`), and otherwise their memory is given back. A kind
that will hardly come again in what is left of the run goes as it is written (`REPLAYS`).

Gradients live in one place each for as long as training lasts, since a graph writes where it was captured to. What needs
new random numbers or a decision on the CPU in every pass (dropout, checkpointing) is not captured (`capturable.py`).
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from dumbo.trainer.graph_kinds import Kind, copies_of, forget_long, has_long, key_of, rows_of
from dumbo.trainer.long_documents import Part
from dumbo.trainer.paying import Paying

MOST = 16
"""Kinds that are captured; batches of further ones go as they are written. Each keeps its inputs, all share one pool."""
SAME = 1e-2
"""Relative distance of a replay's gradients from those as written: attention adds up in another order each time, in bf16
(8 bits). A wrong input or a number frozen at capture gives another batch's gradients: about 1."""
SAME_IN_CUDNN = 5e-2
"""The same where documents go through cuDNN: measured was 0.01 at 8B, 32 layers, where the loss was the same number."""
REPLAYS = 8
"""So many replays of a kind are to be expected before it is captured. By reckoning, not by measurement: capturing and proving
take three or four passes, what eight replays save where they take half of the time."""

Pass = Callable[[Any, dict[str, Any], torch.Tensor], torch.Tensor]


class Graphs:
    """The graphs of one run.

    Args:
        model: what is trained; its gradients are put where they stay.
        one_pass: (model, inputs, items) -> detached loss; forward and backward, as written.
        always: capture even where launching is not what limits, and every kind.
        left: how many passes are still to come.
        in_cudnn: the model's long documents go through cuDNN, in all layers without a window.
    """

    def __init__(
        self, model: torch.nn.Module, one_pass: Pass, *, always: bool, left: Callable[[], float] = lambda: math.inf,
        in_cudnn: bool = False,
    ) -> None:  # fmt: skip
        self.one_pass = one_pass
        self.always, self.left, self.in_cudnn = always, left, in_cudnn
        self.paying = Paying(always=always)
        self.replayed = self.passes = self.in_tiles = 0
        self._kinds: dict[tuple[Any, ...], Kind] = {}
        self._pool: Any = None
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._gradients: list[torch.Tensor] | None = None
        self._stream = torch.cuda.Stream()

    def run(self, model: Any, inputs: dict[str, Any], items: torch.Tensor) -> torch.Tensor:
        """Forward and backward of a micro batch; its loss, detached.

        Args:
            inputs: on the device.
            items: trained tokens of the global batch, a scalar on the device.
        """
        written = self.paying.as_written(lambda: self.one_pass(model, inputs, items))
        if written is not None:
            return written
        self.passes += 1
        self._settle_gradients()
        rows = self._rows(inputs)
        kind = self._kinds.get(key := key_of(inputs, rows))
        if kind is None:
            room = len(self._kinds) < MOST
            kind = Kind(seen=0 if room else -1, in_cudnn=bool(rows))
            if room:
                self._kinds[key] = kind
        if kind.proven:
            self.replayed += 1
            loss = self._replay(kind, inputs, items)
            if not self.paying.replays_pay():
                self._let_go()
            return loss
        self.paying.towards_a_graph()
        return self._beside(lambda: self._towards(kind, model, inputs, items))

    def _rows(self, inputs: dict[str, Any]) -> list[Part]:
        """Those of a batch that cuDNN takes in passes that are captured; all its other documents go through tiles."""
        if not self.in_cudnn:
            forget_long(inputs)
            return []
        long, rows = has_long(inputs), rows_of(inputs)
        self.in_tiles += long and not rows
        return rows

    @property
    def hold_memory(self) -> bool:
        """Whether they have taken any: gradients that stay, a pool of activations."""
        return self._gradients is not None

    def facts(self) -> str:
        """For run.json."""
        if self.paying.used is None:
            return "off: too few passes to see what launching takes"
        if not self.paying.used:
            return self.paying.said
        captured = sum(kind.proven for kind in self._kinds.values())
        said = f"{self.paying.said}: {captured} kinds of batch, {self.replayed:,} of {self.passes:,} passes replayed"
        return f"{said}; {self.in_tiles:,} with long documents in tiles, not in cuDNN" if self.in_tiles else said

    # ---- before the graph is used -----------------------------------------------------------------------------

    def _towards(self, kind: Kind, model: Any, inputs: dict[str, Any], items: torch.Tensor) -> torch.Tensor:
        kind.seen += kind.seen >= 0
        if kind.graph is not None:
            return self._prove(kind, model, inputs, items)
        loss = self.one_pass(model, inputs, items)
        if kind.seen >= 2 and (self.always or self.left() * kind.seen / self.passes >= REPLAYS):
            self._capture(kind, model, inputs, items)
        return loss

    def _capture(self, kind: Kind, model: Any, inputs: dict[str, Any], items: torch.Tensor) -> None:
        kind.inputs, kind.items = copies_of(inputs), items.clone()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # its activations live in a pool of their own; those of passes as written are free now
        # other threads (the next batch, a checkpoint) go on using CUDA meanwhile
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            kind.loss = self.one_pass(model, dict(kind.inputs), kind.items)
        self._pool = self._pool or graph.pool()
        kind.graph = graph

    def _prove(self, kind: Kind, model: Any, inputs: dict[str, Any], items: torch.Tensor) -> torch.Tensor:
        """The batch as written, whose gradients stay, and by the graph.

        A batch whose own numbers are not finite, or that bears no loss, proves nothing: the next one does. A graph that
        differs ends all of them.
        """
        assert self._gradients is not None
        before = [gradient.clone() for gradient in self._gradients]
        loss = self.one_pass(model, inputs, items)
        written = [gradient.clone() for gradient in self._gradients]
        _copy(self._gradients, before)
        found = self._replay(kind, inputs, items)
        apart = _norm([one - other for one, other in zip(written, self._gradients, strict=True)])
        whole = _norm([one - other for one, other in zip(written, before, strict=True)])
        _copy(self._gradients, written)
        if not (torch.isfinite(loss) & torch.isfinite(whole) & (whole > 0)):
            return loss
        of_loss, of_gradients = float(abs(found - loss) / abs(loss)), float(apart / whole)
        same = SAME_IN_CUDNN if kind.in_cudnn else SAME
        kind.proven = of_loss <= same and of_gradients <= same
        if not kind.proven:
            self.paying.give_up(
                f"off: a graph's gradients are {of_gradients:.1g} away from those as written, its loss {of_loss:.1g}"
            )
            self._let_go()
        return loss

    def _let_go(self) -> None:
        """Of graphs, their pool and the gradients' places."""
        for kind in self._kinds.values():
            kind.graph = kind.loss = None
        self._kinds.clear()
        self._gradients = self._pool = None  # what the optimizer's step lets go of is not to stay
        torch.cuda.empty_cache()

    # ---- using it ---------------------------------------------------------------------------------------------

    def _replay(self, kind: Kind, inputs: dict[str, Any], items: torch.Tensor) -> torch.Tensor:
        assert kind.graph is not None
        assert kind.items is not None
        assert kind.loss is not None
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and kind.inputs[name] is not value:
                kind.inputs[name].copy_(value, non_blocking=True)
        kind.items.copy_(items)
        kind.graph.replay()
        return kind.loss.clone()

    def _settle_gradients(self) -> None:
        """Every gradient where graphs write it; zero where the optimizer's step left none."""
        if self._gradients is None:
            self._gradients = [torch.zeros_like(p, dtype=_dtype_of_gradient(p)) for p in self._parameters]
            for parameter, place in zip(self._parameters, self._gradients, strict=True):
                if parameter.grad is not None:
                    place.copy_(parameter.grad)
                parameter.grad = place
            return
        if self._parameters[0].grad is None:
            torch._foreach_zero_(self._gradients)
            for parameter, place in zip(self._parameters, self._gradients, strict=True):
                parameter.grad = place

    def _beside(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        """On the stream that captures, after what was launched before and before what comes after."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            found = work()
        current.wait_stream(self._stream)
        return found


def _dtype_of_gradient(parameter: torch.Tensor) -> torch.dtype:
    return getattr(parameter, "grad_dtype", None) or parameter.dtype


def _copy(to: list[torch.Tensor], source: list[torch.Tensor]) -> None:
    torch._foreach_copy_(to, source)


def _norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors, dtype=torch.float32)))
