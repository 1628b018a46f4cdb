"""Attention in tiles: what it takes, and its numbers through Triton's interpreter (`tiles_interpreted.py`)."""

from __future__ import annotations

from pathlib import Path

import interpreted
import pytest
import torch
from small_runs import model_of
from torch._subclasses.fake_tensor import FakeTensorMode

from dumbo.patch.tile_attention import TileAttention
from dumbo.trainer import attention, tiles


def test_its_numbers_in_the_interpreter() -> None:
    assert interpreted.passed(Path(__file__).with_name("tiles_interpreted.py")) == 9


@pytest.mark.parametrize(
    ("wanted", "width", "dtype", "dropout", "device"),
    [
        (True, 64, torch.bfloat16, 0.0, "cuda"),
        (True, 128, torch.float16, 0.0, "cuda"),
        (False, 80, torch.bfloat16, 0.0, "cuda"),
        (False, 64, torch.float32, 0.0, "cuda"),
        (False, 64, torch.bfloat16, 0.1, "cuda"),
        (False, 64, torch.bfloat16, 0.0, "cpu"),
    ],
)
def test_what_the_kernels_take(wanted: bool, width: int, dtype: torch.dtype, dropout: float, device: str) -> None:
    with FakeTensorMode():
        tensor = torch.empty(1, 2, 5, width, dtype=dtype, device=device)
    assert tiles.usable(tensor, tensor, dropout) is wanted


@pytest.mark.parametrize(
    ("layout", "implementation", "bf16", "said"),
    [
        ("tokens", "isolated", True, None),
        ("padded", "sdpa", True, "batches are padded, through sdpa attention"),
        ("rows", "sdpa", True, "batches are rows"),
        ("tokens", "flash_attention_2", True, "through flash_attention_2"),
        ("tokens", "isolated", False, "the arithmetic is fp32"),
    ],
)
def test_marked_layers_that_never_take_tiles_are_said(layout: str, implementation: str, bf16: bool, said: str | None) -> None:  # fmt: skip
    model = model_of(hidden_size=64)
    assert attention.idle("tiles", model, layout, implementation, bf16) is None
    reason = attention.idle("tiles", TileAttention().apply(model), layout, implementation, bf16)
    assert reason is None if said is None else said in str(reason)


SMALLEST = 99 * 1024
"""Shared memory of a program on GPUs of compute capability 8.6 and 8.9, in bytes: the least of those with bf16."""
KERNELS = {"attention_forward": "forward", "queries_backward": "queries", "keys_backward": "keys"}


@pytest.mark.parametrize("capability", [80, 86, 90])
@pytest.mark.parametrize("kernel", KERNELS)
def test_they_compile_for_every_gpu_and_fit(kernel: str, capability: int) -> None:
    """Compiled for GPUs that are not here, with the widest heads and a window: what they take is in the metadata."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from dumbo.trainer import tile_kernels

    function, cut = getattr(tile_kernels, kernel), tiles.TILES[KERNELS[kernel]]
    own = {
        "HEADS": 8,
        "SHARING": 4,
        "WIDTH": max(tiles.WIDTHS),
        "WINDOW": True,
        "QUERIES": cut.queries,
        "KEYS": cut.keys,
    }
    types = {"lse": "*fp32", "delta": "*fp32", "first": "*i32", "last": "*i32", "tokens": "i32", "window": "i32",
             "scale": "fp32", "scale2": "fp32"}  # fmt: skip
    signature = {name: "constexpr" if name in own else types.get(name, "*bf16") for name in function.arg_names}
    constants = {(function.arg_names.index(name),): value for name, value in own.items()}
    source = triton.compiler.ASTSource(fn=function, signature=signature, constexprs=constants)
    options = {"num_warps": cut.warps, "num_stages": cut.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.metadata.shared <= SMALLEST
