"""What compiled parts of a model keep, for a rehearsal on fake tensors: torch's own partitioner says it.

A layer goes through torch.compile as in training, with the decompositions of inductor and its choice of what is kept for
the backward pass and what is made again there (a minimal cut; matrix products, attention and sums are never made again).
Only its last part is another: in place of kernels the two graphs run operation by operation, and of their results those
are counted that inductor would put into memory:

    counted   what matrix products, attention, sums and whatever is not known make; what a graph gives back or keeps
    fused     what is computed number by number and read by such an operation only: it never is there as a whole

A compiled chunk of the loss holds its logits once, in the dtype that the head computes in: their gradient is written in
their place (in inductor's code of the backward graph: `buf1 = mm; del mm  # reuse`).
https://docs.pytorch.org/docs/stable/user_guide/torch_compiler/torch.compiler_custom_backends.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from dumbo.patch.compiled_call import around
from dumbo.plan.ledger import Ledger

BY_NUMBER = ("convert_element_type", "_to_copy", "clone", "where", "cat", "full", "full_like", "zeros_like", "iota", "arange",
             "scalar_tensor", "empty_like", "constant_pad_nd", "slice_scatter", "select_scatter")  # fmt: skip
"""Names of operations that are computed number by number, besides those that torch tags as such."""
SUMS = ("sum", "mean", "amax", "amin", "var", "any", "all")
"""Names of operations whose loop computes what they read, too."""


def keep_as_compiled(layer: torch.nn.Module, rest: Callable[[], Iterable[torch.nn.Parameter]] | None = None) -> None:
    """A layer that keeps in its forward pass what it would keep compiled: where it is checkpointed, its input alone.

    Args:
        rest: as `compiled_call.around` takes it.
    """
    layer.compile(backend=as_inductor)
    compiled: Any = layer
    compiled._compiled_call_impl = around(layer, compiled._compiled_call_impl, rest)


def as_inductor(graph: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """A backend of torch.compile: what is kept is what inductor keeps.

    The backward graph is made with the forward one: later, in the backward pass, torch would copy the graph's constants among
    fake tensors, which it cannot (layers with a `torch.tensor(…)` of their own).
    """
    from functorch.compile import min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch import config
    from torch._inductor.decomposition import select_decomp_table

    partition = partial(min_cut_rematerialization_partition, compiler="inductor")
    with config.patch(force_non_lazy_backward_lowering=True):
        made: Callable[..., Any] = aot_autograd(
            fw_compiler=_counted, bw_compiler=_counted, decompositions=select_decomp_table, partition_fn=partition
        )(graph, inputs)
    return made


def _counted(graph: GraphModule, inputs: Sequence[Any]) -> Callable[[list[Any]], Any]:
    """The graph as a function of a list, which it empties: what is used for the last time goes, as in inductor's code."""
    whole = in_memory(graph)
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]

    def run(arguments: list[Any]) -> Any:
        given = dict(zip(places, arguments, strict=True))
        arguments.clear()
        return _Counting(graph, whole).run(initial_env=given)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


class _Counting(Interpreter):
    def __init__(self, graph: GraphModule, whole: set[Node]) -> None:
        super().__init__(graph)
        self.whole = whole

    def run_node(self, n: Node) -> Any:
        if n.op != "call_function" or n in self.whole:
            return super().run_node(n)
        with Ledger.overlooked():
            return super().run_node(n)


def in_memory(graph: GraphModule) -> set[Node]:
    """The nodes whose results are there as a whole: they are made by more than a loop over numbers, or read by such."""
    whole: set[Node] = set()

    def there(node: Node) -> None:
        if node not in whole:
            whole.add(node)
            if _is_view(node):
                for source in node.all_input_nodes[:1]:
                    there(source)

    for node in graph.graph.nodes:
        if node.op == "call_function" and (_is_view(node) or _named(node, BY_NUMBER) or _by_number(node)):
            continue
        if node.op == "call_function":
            there(node)
        if not _named(node, SUMS):
            for source in node.all_input_nodes:
                there(source)
    return whole


def _is_view(node: Node) -> bool:
    return node.op == "call_function" and bool(getattr(node.target, "is_view", False))


def _by_number(node: Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _named(node: Node, names: tuple[str, ...]) -> bool:
    """`aten.sum.dim_IntList` is named sum."""
    parts = str(node.target).split(".")
    return len(parts) > 1 and parts[1] in names


def fused_chunk_loss(head: Any, softcap: float | None, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """In the place of `trainer.chunks.chunk_loss`: the same shapes, no numbers."""
    found: torch.Tensor = _Fused.apply(head(hidden))
    return found


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits)
        return torch.empty((), device=logits.device)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (logits,) = ctx.saved_tensors
        return logits.detach()  # its gradient, in its place
