"""Answers from a model: prompts as token ids in, texts out. For samples, exact match and chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
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
        seed: of the sampling.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 0.0
    seed: int = 0


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], how: Generation
) -> list[list[int]]:
    """The new tokens after each prompt, the stop token left out. Prompts are left-padded in batches of like length."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    replies: list[list[int]] = [[] for _ in prompts]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (how.stop_ids or (0,))[0]
    with _answering(model):
        for start in range(0, len(order), PROMPTS_AT_ONCE):
            batch = order[start : start + PROMPTS_AT_ONCE]
            for index, new in zip(batch, _batch(model, [prompts[i] for i in batch], pad, how), strict=True):
                replies[index] = new
    return replies


def _batch(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int, how: Generation) -> Iterator[list[int]]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(list(prompt), dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if how.temperature > 0:
        torch.manual_seed(how.seed)
        sampling = {"do_sample": True, "temperature": how.temperature, "top_p": None, "top_k": None}
    out = model.generate(  # type: ignore[operator]
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=how.max_new_tokens,
        eos_token_id=list(how.stop_ids) or None,
        pad_token_id=pad,
        use_cache=True,
        synced_gpus=_together(model),
        **sampling,
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
def _answering(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, no gradients, the random state as it was afterwards; bf16 arithmetic for fp32 weights on a GPU."""
    was_training = model.training
    model.eval()
    device = model.device
    autocast: Any = nullcontext()
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        autocast = torch.autocast("cuda", dtype=torch.bfloat16)
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
