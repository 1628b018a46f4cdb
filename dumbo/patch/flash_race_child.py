"""The process in which `flash_race.py` has an implementation timed: `told` as JSON on standard input, what was found as JSON in the
file that is its argument. Whatever a package prints is nobody's answer.

All are given the same numbers, laid out as layers have them. The time is triton.testing.do_bench's: caches are emptied before
each pass, behind which launching hides as it does in training; tiles are timed before the other kernel and after it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from dumbo.trainer import flash, long_documents, tiles, varlen

OF_THE_DEVICE = (torch.AcceleratorError, torch.OutOfMemoryError)
"""Others on this GPU may be the cause: they end the child, and it is tried again another day."""
APART = 2e-2
"""Relative distance of norms between two kernels in bf16 (8 bits)."""

Layer = tuple[int, int, int, int | None]
Numbers = dict[str, Any]


def main() -> None:
    told = json.load(sys.stdin)
    layers = [(tuple(kind), count) for kind, count in told["layers"]]
    Path(sys.argv[1]).write_text(json.dumps(raced(told["name"], layers, told["bounds"])))


def raced(name: flash.Name, layers: Sequence[tuple[Any, int]], bounds: Sequence[int]) -> dict[str, Any]:
    """One implementation beside tiles: the arguments of `flash_race.Raced`.

    Raises:
        Exception: tiles failed, the memory is full, or the device is broken: the child ends, and that is what is said.
    """
    try:
        reason = flash.why_not(name)
    except OF_THE_DEVICE:
        raise
    except Exception as error:  # its own, while it is imported: said, and it is not used
        reason = f"{name} is not usable: {type(error).__name__}: {error}".splitlines()[0]
    if reason is not None:
        return {"name": name, "said": reason}
    ms, ours_ms = 0.0, 0.0
    for kind, count in layers:
        given = numbers(kind, bounds)
        wanted, own = results(given, by_tiles), _ms(by_tiles, given)
        try:
            with switched(name):
                apart = distances(results(given, by_varlen), wanted)
                theirs = _ms(by_varlen, given)
        except OF_THE_DEVICE:
            raise
        except Exception as error:  # a package of its own: whatever it raises is said, and it is not used
            return {"name": name, "said": f"{name} failed: {type(error).__name__}: {error}".splitlines()[0]}
        if not all(distance <= APART for distance in apart.values()):  # a NaN is not
            return {"name": name, "said": f"{name} is not right: {furthest(apart)}"}
        own = min(own, _ms(by_tiles, given))  # after the other one too: clocks change
        ours_ms, ms = ours_ms + count * own, ms + count * theirs
    total = sum(count for _, count in layers)
    said = f"{name} takes {ms:.2f} ms for {total} layers on {bounds[-1]:,} tokens, tiles {ours_ms:.2f}"
    return {"name": name, "said": said, "ms": ms, "ours_ms": ours_ms}


def numbers(kind: Layer, bounds: Sequence[int]) -> Numbers:
    """q, k, v and a gradient for layers of a kind, and where the documents lie."""
    heads, shared, width, window = kind
    torch.manual_seed(0)
    q, k, v = (_rows(bounds[-1], n, width).requires_grad_() for n in (heads, shared, shared))
    here = torch.tensor(bounds, dtype=torch.int32)
    there = here.to(_device())
    long_documents.tell({"cu_seq_lens_q": here}, {"cu_seq_lens_q": there})
    grad = torch.randn(1, bounds[-1], heads, width, device=_device(), dtype=torch.bfloat16)
    return {
        "leaves": (q, k, v),
        "grad": grad,
        "bounds": there,
        "longest": int(torch.diff(here).max()),
        "window": window,
    }


def _rows(tokens: int, heads: int, width: int) -> torch.Tensor:
    """(1, heads, tokens, width) as a layer has it."""
    return torch.randn(1, tokens, heads, width, device=_device(), dtype=torch.bfloat16).transpose(1, 2)


def _device() -> torch.device:
    return torch.device("cuda")


def by_tiles(given: Numbers) -> torch.Tensor:
    """(1, T, heads, width)."""
    q, k, v = given["leaves"]
    return tiles.attend(q, k, v, given["bounds"], given["window"], None)


def by_varlen(given: Numbers) -> torch.Tensor:
    """The same by whatever torch is switched to."""
    q, k, v = given["leaves"]
    return varlen.attend(q, k, v, given["bounds"], given["longest"], given["window"], None)


def passed(attend: Callable[[Numbers], torch.Tensor], given: Numbers) -> list[torch.Tensor]:
    """The output, and the gradients of q, k and v."""
    out = attend(given)
    return [out.detach(), *torch.autograd.grad(out, given["leaves"], given["grad"])]


@contextmanager
def switched(name: flash.Name) -> Iterator[None]:
    """torch's flash attention is another one in the block."""
    flash.switch(name)
    try:
        yield
    finally:
        flash.switch_back()


def results(given: Numbers, attend: Callable[[Numbers], torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    """Outputs and gradients of packs, and of plain causal attention and a single query, for which the switch holds too (answers,
    other models)."""
    return {"plain attention": _plain(given), "decoding": _decoded(given), "packs": passed(attend, given)}


def distances(found: dict[str, list[torch.Tensor]], wanted: dict[str, list[torch.Tensor]]) -> dict[str, float]:
    """How far each is from what is wanted, relatively."""
    return {
        f"{part} of {what}": float((one - other).float().norm() / other.float().norm())
        for what in wanted
        for part, one, other in zip(("output", "dq", "dk", "dv"), found[what], wanted[what], strict=False)
    }


def furthest(apart: dict[str, float]) -> str:
    what = next(what for what, distance in apart.items() if not distance <= APART)
    return f"{what} {apart[what]:.1g} from ours"


def _plain(given: Numbers) -> list[torch.Tensor]:
    q, k, v = (tensor[:, :, :128].detach().requires_grad_() for tensor in given["leaves"])
    out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return [out.detach(), *torch.autograd.grad(out.sum(), (q, k, v))]


def _decoded(given: Numbers) -> list[torch.Tensor]:
    q, k, v = (tensor[:, :, :128].detach() for tensor in given["leaves"])
    return [scaled_dot_product_attention(q[:, :, -1:], k, v, enable_gqa=True)]


def _ms(attend: Callable[[Numbers], torch.Tensor], given: Numbers) -> float:
    """Milliseconds of forward and backward."""
    from triton.testing import do_bench

    return float(do_bench(lambda: passed(attend, given), warmup=20, rep=100, return_mode="median"))


if __name__ == "__main__":
    main()
