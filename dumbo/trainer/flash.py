"""Which flash attention computes torch's variable-length attention: torch's own, or FlashAttention 3 or 4 where installed.

torch has a switch for the whole process (`torch.nn.attention.activate_flash_attention_impl`); the packages register no
kernels by themselves. Releases of torch and of the packages do not always fit, so each is tried on a few made-up documents
first: it has to compute what torch's own does, forward and backward, and its time is taken.
https://docs.pytorch.org/docs/stable/generated/torch.nn.attention.activate_flash_attention_impl.html
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import attention

PACKAGES = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}
"""Name of an implementation -> the module that it is in."""
TORCHS = "torch"
DOCUMENTS, LENGTH = 16, 512
"""Of the trial: 8,192 tokens."""
ROUNDS = 10
SAME = 2e-2
"""Relative distance of outputs and gradients: both round to bf16 (8 bits) and add up in orders of their own."""

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Trial:
    """One implementation on the made-up documents.

    Attributes:
        seconds: of a forward and backward pass; None where it failed.
        fault: what is wrong with it.
    """

    seconds: float | None = None
    fault: str | None = None


def installed() -> list[str]:
    """Implementations besides torch's own that this torch can switch to and whose package is there."""
    known = attention.list_flash_attention_impls() if hasattr(attention, "list_flash_attention_impls") else []
    return [name for name in PACKAGES if name in known and _found(PACKAGES[name])]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False


def switch(name: str) -> None:
    """To an implementation, for this process."""
    attention.activate_flash_attention_impl(name)


def switch_back() -> None:
    """To torch's own."""
    attention.restore_flash_attention_impl()


def tried(names: Sequence[str], heads: int, key_heads: int, width: int) -> dict[str, Trial]:
    """Torch's own and each of `names`, on the GPU; the process is left with torch's own."""
    inputs = made_up(heads, key_heads, width)
    wanted, seconds = _timed(lambda: passes(inputs))
    return {
        TORCHS: Trial(seconds),
        **{name: trial_of(name, lambda: _timed(lambda: passes(inputs)), wanted) for name in names},
    }


def trial_of(name: str, run: Callable[[], tuple[Tensors, float]], wanted: Tensors) -> Trial:
    """One implementation, switched to and back.

    Args:
        run: what it computes, and the seconds that takes.
        wanted: what torch's own computed.
    """
    try:
        switch(name)
    except Exception as error:  # a package that does not fit this torch or this GPU: said, not raised
        return Trial(fault=f"torch cannot switch to it ({_first_line(error)})")
    try:
        found, seconds = run()
    except Exception as error:
        return Trial(fault=f"it fails here ({_first_line(error)})")
    finally:
        switch_back()
    for one, other in zip(found, wanted, strict=True):
        if not (apart := _apart(one, other)) <= SAME:  # nan is not
            return Trial(fault=f"its numbers are {apart:.1g} away from torch's own ({SAME:g} allowed)")
    return Trial(seconds)


def fastest(trials: Mapping[str, Trial]) -> str:
    """The name of the one that took the least time."""
    return min((trial.seconds, name) for name, trial in trials.items() if trial.seconds is not None)[1]


def told(name: str, trials: Mapping[str, Trial]) -> str:
    """Which one it is, and what became of the others."""
    own = trials[TORCHS].seconds
    others = []
    for other, trial in trials.items():
        if trial.fault is not None:
            others.append(f"{other}: {trial.fault}")
        elif other != TORCHS and own and trial.seconds:
            others.append(f"{other} takes {100 * trial.seconds / own:.0f}% of the time of torch's own")
    return ", ".join([TORCHS + "'s own flash attention" if name == TORCHS else name, *others])


def made_up(heads: int, key_heads: int, width: int) -> Tensors:
    """(query, key, value, bounds) of DOCUMENTS documents, as `varlen.attend` takes them."""
    generator = torch.Generator("cuda").manual_seed(0)
    tokens = DOCUMENTS * LENGTH

    def drawn(amount: int) -> torch.Tensor:
        return torch.randn(
            1, amount, tokens, width, device="cuda", dtype=torch.bfloat16, generator=generator
        ).requires_grad_()

    bounds = torch.arange(0, tokens + 1, LENGTH, device="cuda", dtype=torch.int32)
    return drawn(heads), drawn(key_heads), drawn(key_heads), bounds


def passes(inputs: Tensors) -> Tensors:
    """Output and gradients of causal attention within the documents."""
    from dumbo.trainer.varlen import attend

    query, key, value, bounds = inputs
    out = attend(query, key, value, bounds, LENGTH, None, None)
    return (out, *torch.autograd.grad(out, (query, key, value), torch.ones_like(out)))


def _timed(work: Callable[[], Tensors]) -> tuple[Tensors, float]:
    """What it computes, and the seconds a round takes once it is warm."""
    for _ in range(2):
        found = work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(ROUNDS):
        work()
    torch.cuda.synchronize()
    return found, (time.perf_counter() - began) / ROUNDS


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:160]
