"""Answers from a model: prompts as token ids in, texts out. For samples, exact match and chat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS_AT_ONCE = 25


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How to answer.

    Args:
        max_new_tokens: longest answer.
        stop_ids: tokens that end it.
        temperature: 0: greedy.
        top_p: sample from the likeliest tokens that have this share together; None: from all.
        top_k: sample from so many of the likeliest; None: from all.
        seed: of the sampling.
        at_once: prompts in a batch.
        bf16: whether the arithmetic is bf16; None: where a GPU has it.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0
    at_once: int = PROMPTS_AT_ONCE
    bf16: bool | None = None

    def but(self, **changes: Any) -> Generation:
        """The same with some changes."""
        return replace(self, **changes)

    def sampling(self) -> dict[str, Any]:
        """How the next token is chosen, as arguments of `generate`."""
        if self.temperature <= 0:  # what a model's own generation config would change of its likeliest token is off
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "num_beams": 1,
                    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}  # fmt: skip
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    how: Generation,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """The new tokens after each prompt, the stop token left out. Prompts are left-padded in batches of like length.

    Args:
        progress: told after each batch how many prompts are answered.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    replies: list[list[int]] = [[] for _ in prompts]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (how.stop_ids or (0,))[0]
    with answering(model, how.bf16):
        for start in range(0, len(order), how.at_once):
            batch = order[start : start + how.at_once]
            for index, new in zip(batch, _batch(model, [prompts[i] for i in batch], pad, how), strict=True):
                replies[index] = new
            progress(start + len(batch))
    return replies


def _batch(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int, how: Generation) -> Iterator[list[int]]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(list(prompt), dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    if how.temperature > 0:
        torch.manual_seed(how.seed)
    out = model.generate(  # type: ignore[operator]
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max(1, min(how.max_new_tokens, (context_of(model) or 1 << 30) - width)),
        eos_token_id=list(how.stop_ids) or None,
        pad_token_id=pad,
        use_cache=True,
        synced_gpus=_together(model),
        **how.sampling(),
    )
    for row in out[:, width:].tolist():
        end = next((place for place, token in enumerate(row) if token in how.stop_ids), len(row))
        yield row[:end]


def _together(model: PreTrainedModel) -> bool:
    """Whether every rank must make each pass, because every one of them holds a part of each layer."""
    import torch.distributed as dist
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule) and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def answering(model: PreTrainedModel, bf16: bool | None = None) -> Iterator[None]:
    """Evaluation mode, no gradients, the random state as it was afterwards; bf16 arithmetic for fp32 weights on a GPU.

    Args:
        bf16: whether that arithmetic is wanted; None: where a GPU has it.
    """
    was_training = model.training
    model.eval()
    device = model.device
    if bf16 is None:
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    autocast: Any = torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad(), autocast:
            yield
    finally:
        model.train(was_training)


def stop_ids(tokenizer: PreTrainedTokenizerBase, seen: Sequence[int] = ()) -> tuple[int, ...]:
    """Tokens that end an answer: eos, and the end-of-turn tokens `seen` at the end of trained turns."""
    own = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return tuple(dict.fromkeys([*own, *seen]))


def context_of(model: PreTrainedModel) -> int | None:
    """Tokens that a model has positions for, by its config; None where that knows no end."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or None


def own_ends(model: PreTrainedModel) -> list[int]:
    """Tokens that end an answer by the model's own generation config."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return list(ends) if isinstance(ends, list) else [ends] if ends is not None else []
