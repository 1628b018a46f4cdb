"""On a CUDA device: attention in tiles, and of long documents in cuDNN, against each document alone, and trained with."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attending import alone, apart
from small_runs import Document, model_of, small_run, splits_of
from test_speed import OPTIONS, SHAPE, rows

from dumbo.patch import flash_race, flash_race_child
from dumbo.patch.chunked_loss import ChunkedLoss
from dumbo.patch.compile import Compile
from dumbo.patch.gradient_checkpointing import GradientCheckpointing
from dumbo.patch.tile_attention import TileAttention
from dumbo.trainer import cudnn, flash, long_documents, tile_kernels, tiles

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


class Shapes(list[tuple[int, ...]]):
    """Of queries whose gradients cuDNN computes, and how many of them while a graph was captured."""

    captured = 0


@pytest.fixture
def through_cudnn(monkeypatch: pytest.MonkeyPatch) -> Shapes:
    if (reason := cudnn.lacking()) is not None:
        pytest.skip(reason)
    seen = Shapes()
    theirs = cudnn.attend_rows_backward

    def noted(grad: torch.Tensor, *given: Any) -> Any:
        seen.append(tuple(grad.shape))
        seen.captured += torch.cuda.is_current_stream_capturing()
        return theirs(grad, *given)

    monkeypatch.setattr(cudnn, "attend_rows_backward", noted)
    return seen


LONG_PACKS = {
    "rows": [0, 4096, 8192],
    "between short ones": [0, 3, 3, 300, 5500, 5800, 9896, 12_000, 12_000],
    "past the end": [0, 5000],
}


@pytest.mark.parametrize("packs", LONG_PACKS)
@pytest.mark.parametrize(("heads", "shared", "width"), [(9, 3, 64), (8, 2, 128)])
def test_long_documents_are_alone_too(heads: int, shared: int, width: int, packs: str, through_cudnn: Any) -> None:
    """As above. What comes after a document is looked at by cuDNN where its length is rounded: other numbers there change
    nothing."""
    bounds = [*LONG_PACKS[packs], 12_288 if packs != "past the end" else 9111]
    torch.manual_seed(0)
    counts = (heads, shared, shared, heads)
    *inputs, grad = (torch.randn(bounds[-1], n, width, device="cuda", dtype=torch.bfloat16) for n in counts)
    leaves = [tensor.double().requires_grad_() for tensor in inputs]
    wanted = alone(*leaves, bounds[:-1])
    reference = [wanted, *torch.autograd.grad(wanted, leaves, grad.double())]
    cudnn.why_not.cache_clear()  # tried for the first time inside the operator
    here = torch.tensor(bounds, dtype=torch.int32)
    there = {"cu_seq_lens_q": here.cuda()}
    long_documents.tell({"cu_seq_lens_q": here}, there)
    own = [tensor.clone().requires_grad_() for tensor in inputs]
    out = tiles.tile_attention(*own, there["cu_seq_lens_q"], 0, width**-0.5)[0]
    found = [out, *torch.autograd.grad(out, own, grad)]
    assert cudnn.why_not.cache_info().misses == 1
    through_cudnn.remove((1, heads, cudnn.TRIED, width))
    assert sum(shape[0] for shape in through_cudnn) == sum(end - start >= 4096 for start, end in pairwise(bounds))
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, reference, strict=True):
        for start, end in pairwise(bounds):
            if end > start:
                assert apart(one[start:end], other[start:end]) < 1e-2, (name, start)


def long_rows(lengths: list[int], seed: int) -> list[Document]:
    """Documents whose next token is one of a few: there is something to learn."""
    generator = np.random.default_rng(seed)
    return [((np.cumsum(generator.integers(1, 4, n)) % 512).astype(np.int32), np.arange(n) >= 5) for n in lengths]


@pytest.mark.parametrize(
    ("fast", "lengths"),
    [
        ("written", [5000, 300, 4096, 2500, 7000, 900, 200, 8192]),
        ("compiled", [5000, 300, 4096, 2500, 7000, 900, 200, 8192]),
        ("checkpointed", [5000, 300, 4096, 2500, 7000, 900, 200, 8192]),
        ("captured", [4096, 4096, 4096, 4096]),
    ],
)
def test_losses_on_long_documents_are_those_of_torchs_kernel(
    fast: str, lengths: list[int], tmp_path: Path, through_cudnn: Any
) -> None:
    """16 steps in bf16, losses within 0.5%. Checkpointed layers are computed again in autograd's own thread; with them two micro
    batches are on the device at once."""
    micro_batches = 2 if fast == "checkpointed" else 1
    splits = splits_of(tmp_path, long_rows(lengths * 6, 0), long_rows(lengths, 1), max_seq_len=8192)
    runs = []
    for tiled in (False, True):
        torch.compiler.reset()
        model = model_of(**SHAPE, attn_implementation="sdpa", max_position_embeddings=8192)
        if tiled:
            model = TileAttention().apply(model)
            assert "documents of 4,096 tokens and more in cuDNN's" in TileAttention().evidence(model)
            through_cudnn.clear()
        if fast != "written":
            model = Compile().apply(ChunkedLoss(chunk_size=4096).apply(model))
        if fast == "checkpointed":
            model = GradientCheckpointing().apply(model)
        graphs = {"cuda_graphs": fast == "captured" and tiled}
        options: dict[str, Any] = {**OPTIONS, "max_steps": 16, "max_seq_len": 8192,
                                   "global_batch_size": micro_batches, "micro_batch_size": 1, "eval_every": 8, **graphs}  # fmt: skip
        assert not through_cudnn
        runs.append(small_run(tmp_path / str(tiled), splits, model=model, verify=True, **options))
    torch.compiler.reset()
    plain, tiled_run = runs
    assert len(through_cudnn) >= 3 * (3 if fast == "captured" else 8), "three layers, a step"
    for key, off in (("loss", 5e-3), ("eval_loss", 5e-3), ("grad_norm", 5e-2)):
        one, other = ([row[key] for row in run.rows if key in row] for run in (tiled_run, plain))
        assert one == pytest.approx(other, rel=off), key
    if fast == "captured":
        assert tiled_run.facts["cuda_graphs"].startswith("on: 1 kinds of batch"), tiled_run.facts["cuda_graphs"]
        assert through_cudnn.captured >= 3, "the graph has tiles in it"


@pytest.mark.parametrize("longest", [300, 9000])
def test_tiles_race_against_what_is_installed(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's own kernel in the place of an installed one: as right, and slower on documents of both kinds."""
    monkeypatch.setattr(flash, "why_not", lambda name: None if name == "FA3" else "not here")
    monkeypatch.setattr(flash, "switch", lambda name: None)
    skeleton = model_of(**{**SHAPE, "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8})
    race = flash_race.Race.of(skeleton, np.random.default_rng(0).integers(longest // 3, longest, 200), {"FA3": ["", 0]})
    found = flash_race.Raced(**flash_race_child.raced("FA3", race.layers, race.bounds))
    assert found.said.startswith("FA3 takes "), found.said
    assert found.ms is not None
    assert found.ours_ms is not None
    assert found.ms > found.ours_ms > 0
    assert not found.faster
