"""Output head and loss in one, chunk by chunk (`trainer/chunks.py`), in place of logits for every token.

Pipeline: load -> patch (stage KERNELS: adapters wrap what it leaves) -> train.
A vocabulary of 128 k and 16 k tokens make 8 GiB of logits in float32 alone. Here no more than a chunk of them is ever
held, in training and in evaluation; tokens that bear no loss (prompts) are not given to the head at all. On a GPU a
chunk goes through a kernel of our own. The model's own forward pass remains for everything else: generating, logits that are asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import product
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar

from dumbo.errors import RunFailed, UserError
from dumbo.interfaces import IGNORE, Stage
from dumbo.patch.compile import Compile
from dumbo.patch.modules import base_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LIGERS_LOSSES = ("fused_linear_cross_entropy", "cross_entropy")
BETWEEN = ("logit_scale", "logits_scaling", "lm_head_multiplier")
"""Config keys of what some models do between head and loss; `final_logit_softcapping` is honoured."""
VARIANTS = 16
"""Graphs of a chunk's loss: with gradients and without, under autocast and not, of any number of tokens, and room for more."""
SAME = 1e-5
"""Relative difference of two sums of 13 losses in float32."""
MOST_TOKENS = 8192
"""Of a chunk."""
MOST_BYTES = {False: 2**30, True: 2**31}
"""Of its logits in bf16, by whether the head trains. 8,192 tokens of a vocabulary of 128 k were at the peak of an 8B with LoRA
and checkpointing: with 4,096 it is 1 GiB less and as fast. Where the head trains each chunk adds its gradient to a sum of the
head's size: 33 k tokens of 1B are 1.1% slower with chunks of 4,096 (benchmarks/NOTES.md)."""


_most: ContextVar[int] = ContextVar("most", default=1 << 30)


@dataclass(frozen=True, kw_only=True)
class ChunkedLoss:
    """The loss without all logits. Runs on a CPU too.

    Args:
        chunk_size: tokens a chunk, whose logits take chunk_size x vocabulary x 2 bytes in bf16. null: what 1 GiB has room
            for, 2 GiB where the head trains, at most 8,192.
        kernel: a chunk's loss goes through a kernel of our own (`trainer/row_loss.py`) where patch=[compile] could run: 4 to 12% of
            the time of head and loss less than compiled (benchmarks/NOTES.md).
        compiled: with kernel=false it goes through torch.compile there. Both false, or elsewhere: torch's operations.

    Raises:
        UserError: a model that does more between its layers and its loss, or has another loss (compared on random numbers).
    """

    chunk_size: int | None = None
    kernel: bool = True
    compiled: bool = True

    stage: ClassVar[Stage] = Stage.KERNELS
    conflicts: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.chunk_size is not None and self.chunk_size < 1:
            raise UserError(f"chunk_size must be at least 1, got {self.chunk_size}.")

    def conflicts_with(self, others: Mapping[str, Any]) -> Iterable[str]:
        """Liger's losses are in its place."""
        for name in LIGERS_LOSSES:
            if getattr(others.get("liger"), name, False):
                yield (
                    f"patch.chunked_loss and patch.liger.{name} both are the loss.\n"
                    f"  Write patch.liger.{name}=false, or leave chunked_loss out of patch=[…]"
                )

    def check(self, skeleton: PreTrainedModel) -> None:
        from transformers.loss.loss_utils import ForCausalLMLoss

        base = base_of(skeleton)
        config = base.config.get_text_config()
        faults = [f"{key}={value}" for key in BETWEEN if (value := getattr(config, key, None)) not in (None, 1, 1.0)]
        if getattr(config, "output_router_logits", False):
            faults.append("output_router_logits=true")
        kinds = [parameter.kind for parameter in inspect.signature(type(base).forward).parameters.values()]
        if base.get_output_embeddings() is None or base.base_model is base:
            faults.append("no output head over a model of its own")
        elif base.loss_function is not ForCausalLMLoss:
            faults.append(f"the loss {getattr(base.loss_function, '__name__', base.loss_function)}")
        elif inspect.Parameter.VAR_KEYWORD not in kinds:
            faults.append("a forward pass without num_items_in_batch")
        if faults:
            raise UserError(
                f"patch.chunked_loss: {type(base).__name__} has {', '.join(faults)}, which it would leave out.\n"
                "  Leave chunked_loss out of patch=[…]."
            )
        if (difference := unlike(base)) is not None:
            raise UserError(
                f"patch.chunked_loss: {type(base).__name__} has {difference}.\n  Leave chunked_loss out of patch=[…]."
            )

    def without_smoothing(self) -> str | None:
        """What to write where labels are smoothed, which its loss does not do."""
        return "leave chunked_loss out of patch=[…]"

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        self.check(model)
        base: Any = base_of(model)
        base.forward = MethodType(_forward(base.forward, partial(self.tokens, _rows(base)), self._function()), base)
        self.evidence(model)
        return model

    def tokens(self, vocabulary: int, trains: bool) -> int:
        """Of a chunk.

        Args:
            vocabulary: rows of the head.
            trains: whether the head's weight does.
        """
        if self.chunk_size is not None:
            return self.chunk_size
        return min(MOST_TOKENS, max(1024, MOST_BYTES[trains] // (2 * vocabulary) // 1024 * 1024))

    def _function(self) -> Any:
        import torch

        from dumbo.trainer.chunks import chunk_loss

        if not (self.compiled or self.kernel) or Compile().unavailable() is not None:
            return chunk_loss
        if self.kernel:
            from dumbo.trainer.row_loss import RowLoss

            return RowLoss()
        torch.compiler.reset()  # graphs of an earlier run's vocabulary and width would count against the limit of variants
        return _within_limit(torch.compile(chunk_loss))

    def evidence(self, model: PreTrainedModel) -> str:
        """Looks for it in the model.

        Raises:
            RuntimeError: it is not there.
        """
        base: Any = base_of(model)
        if not takes_places(base):
            raise RuntimeError(f"the chunked loss did not take on {type(base).__name__}")
        how = ", in a kernel of our own" if self.kernel else ", compiled" if self.compiled else ""
        if how and (reason := Compile().unavailable()) is not None:
            how = f", in torch's operations: {reason}"
        frozen, training = self.tokens(_rows(base), False), self.tokens(_rows(base), True)
        said = f"head and loss over {training:,} tokens at a time"
        return said + f", {frozen:,} where the head is frozen" * (frozen != training) + how


def unlike(base: Any) -> str | None:
    """How a model's loss differs from that of a head and cross-entropy alone; None: it does not.

    Its own forward method runs on the CPU, in float32, around stand-ins for layers and head (`stand_ins.py`): on a
    skeleton too, and whatever its size. What lies between them (caps, norms, masks) and what is added to the loss is its
    own. Small logits show what shifts them, large ones a cap.
    """
    import torch

    from dumbo.patch.stand_ins import with_stand_ins
    from dumbo.trainer.chunks import chunk_loss

    labels = torch.arange(1, 17).reshape(2, 8)
    labels[0, :3] = IGNORE
    asked: dict[str, Any] = {"input_ids": labels.abs(), "labels": labels, "use_cache": False}
    asked["num_items_in_batch"] = torch.tensor(7)
    try:
        for training, scale in product((True, False), (1.0, 20.0)):
            probe = with_stand_ins(base, scale).train(training)
            own = MethodType(type(base).forward, probe)
            chunked = MethodType(_forward(own, lambda trains: 4, chunk_loss), probe)
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                wanted, found = float(own(**asked).loss), float(chunked(**asked, skip_logits=True).loss)
            if not abs(found - wanted) <= SAME * abs(wanted):
                return f"more than a head between its layers and its loss, {wanted:.6g} where the head alone gives {found:.6g}"
    except Exception as error:  # a forward method may do anything around its layers
        said = " ".join(str(error).split())
        return f"a forward pass that cannot be compared with its head alone ({type(error).__name__}: {said})"
    return None


def takes_places(model: Any) -> bool:
    """Whether a model's loss wants to know which tokens bear it (`loss_at`)."""
    return "loss_at" in inspect.signature(base_of(model).forward).parameters


@contextmanager
def chunks_of(tokens: int) -> Iterator[None]:
    """Inside, chunks have no more tokens than that: several of them can be looked at on few."""
    before = _most.set(tokens)
    try:
        yield
    finally:
        _most.reset(before)


def _rows(base: Any) -> int:
    rows: int = base.get_output_embeddings().weight.shape[0]
    return rows


def trains(head: Any) -> bool:
    """Whether its weight does, or what stands in for it; adapters do not count. `weight` itself can be made anew each time that it
    is asked for (peft's added tokens).
    """
    parameters = list(head.parameters())
    largest = max(parameter.numel() for parameter in parameters)
    return any(parameter.requires_grad and parameter.numel() == largest for parameter in parameters)


def _within_limit(compiled: Any) -> Any:
    """A compiled function that raises where torch would have run it uncompiled from then on, without a word.

    Raises:
        RunFailed: more graphs than torch makes of one function.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit

    def called(*arguments: Any) -> Any:
        before = config.recompile_limit, config.fail_on_recompile_limit_hit
        config.recompile_limit, config.fail_on_recompile_limit_hit = max(VARIANTS, before[0]), True
        try:
            return compiled(*arguments)
        except FailOnRecompileLimitHit as error:
            raise RunFailed(
                f"patch.chunked_loss: the loss of a chunk needs more than {config.recompile_limit} compiled graphs.\n"
                "  Write patch.chunked_loss.compiled=false (TORCH_LOGS=recompiles tells what differs from call to call)"
            ) from error
        finally:
            config.recompile_limit, config.fail_on_recompile_limit_hit = before

    return called


def _forward(own: Any, size: Callable[[bool], int], of_chunk: Any) -> Any:
    """A forward method like `own`, which with `skip_logits` returns the loss alone.

    Args:
        own: the model's bound method.
        size: tokens a chunk, by whether the head trains.
        of_chunk: `chunk_loss`, the same compiled, or `RowLoss`.
    """

    def forward(
        self: Any,
        *arguments: Any,
        labels: torch.Tensor | None = None,
        skip_logits: bool | None = None,
        loss_at: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if labels is None or not skip_logits:
            return own(*arguments, labels=labels, **kwargs)
        from torch.nn import functional
        from transformers.modeling_outputs import CausalLMOutputWithPast

        from dumbo.trainer.chunks import summed_loss

        items = kwargs.pop("num_items_in_batch", None)
        kwargs.pop("logits_to_keep", None)
        hidden = self.base_model(*arguments, **kwargs).last_hidden_state
        targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORE).flatten().to(hidden.device)
        softcap = getattr(self.config.get_text_config(), "final_logit_softcapping", None)
        head = self.get_output_embeddings()
        tokens = min(size(trains(head)), _most.get())
        total = summed_loss(head, softcap, hidden.flatten(0, 1), targets, loss_at, tokens, of_chunk)
        return CausalLMOutputWithPast(loss=total / (items if items is not None else (targets != IGNORE).sum()))

    # What looks at a model's arguments (generate, Trainer, our engine) finds the model's own, and the two new ones.
    shown = inspect.signature(own)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in ("skip_logits", "loss_at")
    ]
    listed = list(shown.parameters.values())
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = shown.replace(parameters=[first, *listed[:-1], *more, listed[-1]])  # type: ignore[attr-defined]
    return forward
