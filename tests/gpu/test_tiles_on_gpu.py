"""On a CUDA device: attention in tiles against each document alone, the same bits each time, and trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attending import alone, apart
from small_runs import model_of, small_run, splits_of
from test_speed import OPTIONS, SHAPE, rows

from dumbo.patch.chunked_loss import ChunkedLoss
from dumbo.patch.compile import Compile
from dumbo.patch.tile_attention import TileAttention
from dumbo.trainer import tile_kernels, tiles

pytestmark = pytest.mark.gpu
PACKS = {
    "short": [0, 3, 3, 150, 400, 401, 700, 1000],
    "one": [0],
    "many": list(range(0, 1000, 5)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("window", [0, 37], ids=["all", "window"])
@pytest.mark.parametrize("packs", PACKS)
@pytest.mark.parametrize(("heads", "shared", "width"), [(9, 3, 64), (4, 4, 16), (8, 2, 128), (2, 1, 32)])
def test_it_is_each_document_alone(heads: int, shared: int, width: int, packs: str, window: int, dtype: Any) -> None:
    """Within 1% of the largest number in bf16 (8 bits: 0.4% for one rounding), 0.15% in float16; twice the same bits."""
    torch.manual_seed(0)
    counts = (heads, shared, shared, heads)
    *inputs, grad = (torch.randn(1000, n, width, device="cuda", dtype=dtype) for n in counts)
    leaves = [tensor.double().requires_grad_() for tensor in inputs]
    wanted = alone(*leaves, [start for start in PACKS[packs] if start < 1000], window)
    reference = [wanted, *torch.autograd.grad(wanted, leaves, grad.double())]
    bounds = torch.tensor(PACKS[packs], dtype=torch.int32, device="cuda")
    turns = []
    for _ in range(2):
        own = [tensor.clone().requires_grad_() for tensor in inputs]
        out = tiles.tile_attention(*own, bounds, window, width**-0.5)[0]
        turns.append([out, *torch.autograd.grad(out, own, grad)])
    for name, one, again, other in zip(("out", "dq", "dk", "dv"), *turns, reference, strict=True):
        assert torch.equal(one, again), name
        assert apart(one, other) < (1e-2 if dtype == torch.bfloat16 else 1.5e-3), name


@pytest.mark.parametrize("fast", ["written", "compiled", "captured"])
def test_losses_are_those_of_torchs_kernel(fast: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 steps in bf16, losses within 0.5%: alone, in compiled layers, and replayed as CUDA graphs."""
    launched: list[bool] = []
    kernel = tile_kernels.keys_backward

    class Counted:
        def __getitem__(self, grid: Any) -> Any:
            launched.append(True)
            return kernel[grid]

    monkeypatch.setattr(tile_kernels, "keys_backward", Counted())
    splits = splits_of(tmp_path, rows(300), rows(12, seed=1))
    runs = []
    for tiled in (False, True):
        torch.compiler.reset()
        model = model_of(**SHAPE, attn_implementation="sdpa")
        if tiled:
            model = TileAttention().apply(model)
        if fast != "written":
            model = Compile().apply(ChunkedLoss(chunk_size=256).apply(model))
        graphs = {"cuda_graphs": fast == "captured" and tiled}
        options: dict[str, Any] = {**OPTIONS, "max_steps": 30, **graphs}
        before = len(launched)
        runs.append(small_run(tmp_path / str(tiled), splits, model=model, verify=True, **options))
        assert (len(launched) > before) is tiled
    torch.compiler.reset()
    plain, tiled_run = runs
    for key, off in (("loss", 5e-3), ("eval_loss", 5e-3), ("grad_norm", 5e-2)):
        one, other = ([row[key] for row in run.rows if key in row] for run in (tiled_run, plain))
        assert one == pytest.approx(other, rel=off), key
    assert "pack leak 0 (isolated attention)" in tiled_run.said
    if fast == "captured":
        assert tiled_run.facts["cuda_graphs"].startswith("on: "), tiled_run.facts["cuda_graphs"]
