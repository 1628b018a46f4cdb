"""Attention in tiles, its kernels run by Triton's interpreter on the CPU, against each document alone in float64.

`test_tiles.py` runs these in a process of their own: Triton chooses its interpreter when it is imported. The same on a GPU,
and trained with: tests/gpu/test_tiles_on_gpu.py.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from attending import alone, apart
from small_runs import model_of

from dumbo.trainer import attention, tiles

assert os.environ.get("TRITON_INTERPRET") == "1", "see test_tiles.py"


def given(heads: int, shared: int, width: int, tokens: int, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v and a gradient, in float16: the interpreter has no bf16."""
    torch.manual_seed(seed)
    counts = (heads, shared, shared, heads)
    return [torch.randn(tokens, n, width, dtype=torch.float16) for n in counts]


def results(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor, starts: list[int], window: int = 0) -> list[Any]:  # fmt: skip
    """Output and gradients; the last of `starts` begins what no bound ends."""
    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    out = tiles.tile_attention(*leaves, torch.tensor(starts, dtype=torch.int32), window, q.shape[-1] ** -0.5)[0]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize(
    ("heads", "shared", "width", "tokens", "starts", "window"),
    [
        pytest.param(6, 2, 64, 150, [0, 7, 7, 60, 130, 150], 0, id="grouped queries, an empty document"),
        pytest.param(2, 2, 16, 130, [0, 3, 50, 120], 0, id="tokens after the last bound"),
        pytest.param(2, 1, 128, 100, [0, 80, 100, 100], 40, id="a window"),
        pytest.param(2, 2, 32, 97, [0, 97], 200, id="a window wider than the document"),
        pytest.param(2, 1, 32, 65, [0, 1, 2, 3, 64, 65], 0, id="documents of one token"),
    ],
)
def test_it_is_each_document_alone(heads: int, shared: int, width: int, tokens: int, starts: list[int], window: int) -> None:  # fmt: skip
    """Within 1e-3 of the largest number: half of float16's last bit is 5e-4."""
    *inputs, grad = given(heads, shared, width, tokens)
    leaves = [tensor.double().requires_grad_() for tensor in inputs]
    wanted = alone(*leaves, [start for start in starts if start < tokens], window)
    reference = [wanted, *torch.autograd.grad(wanted, leaves, grad.double())]
    found = results(*inputs, grad, starts, window)
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, reference, strict=True):
        assert apart(one, other) < 1e-3, name


def test_no_document_sees_another() -> None:
    """Other tokens in one document: the others' outputs and gradients are the same bits."""
    starts = [0, 20, 60, 80]
    inputs, others = given(2, 1, 32, 100), given(2, 1, 32, 100, seed=1)
    changed = [tensor.clone() for tensor in inputs]
    for mine, foreign in zip(changed, others, strict=True):
        mine[20:60] = foreign[20:60]
    kept = torch.ones(100, dtype=torch.bool)
    kept[20:60] = False
    for one, other in zip(results(*inputs, starts), results(*changed, starts), strict=True):
        assert torch.equal(one[kept], other[kept])
        assert not torch.equal(one[~kept], other[~kept])


def test_tensors_it_would_misread_are_refused() -> None:
    q, k, v, _ = given(2, 1, 16, 40)
    bounds = torch.tensor([0, 40], dtype=torch.int32)
    with pytest.raises(ValueError, match="contiguous tensors of one length"):
        tiles.tile_attention(q.transpose(0, 1).contiguous().transpose(0, 1), k, v, bounds, 0, 0.25)
    with pytest.raises(ValueError, match="contiguous tensors of one length"):
        tiles.tile_attention(q, k[:20], v[:20], bounds, 0, 0.25)


def test_the_operator_is_as_torch_wants_it() -> None:
    """Schema, fake tensors, autograd and tracing with free shapes (torch.library.opcheck)."""
    q, k, v, _ = given(2, 1, 16, 40)
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    bounds = torch.tensor([0, 15, 40], dtype=torch.int32)
    found = torch.library.opcheck(tiles.tile_attention, (*inputs, bounds, 0, 0.25))
    assert len(found) >= 4
    assert set(found.values()) == {"SUCCESS"}


def test_marked_layers_take_it_for_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's logits and gradients are those of the groups; unmarked layers and padded batches do not come here."""
    from dumbo.patch.tile_attention import TileAttention

    attention.register()
    calls: list[int] = []
    real = tiles.attend

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(tiles, "attend", counted)
    ids = torch.randint(0, 512, (1, 90), generator=torch.Generator().manual_seed(0))
    packs = {"input_ids": ids, "labels": ids, "cu_seq_lens_q": torch.tensor([0, 40, 90], dtype=torch.int32),
             "position_ids": torch.cat([torch.arange(40), torch.arange(50)])[None], "use_cache": False}  # fmt: skip
    found = []
    for marked in (False, True):
        model = model_of(hidden_size=64).half()
        model.set_attn_implementation(attention.NAME)
        if marked:
            model = TileAttention().apply(model)
            monkeypatch.setattr(tiles, "usable", lambda *asked: True)  # of a device: this is none
        out = model(**packs)
        out.loss.backward()
        found.append([out.logits.detach(), *(parameter.grad for parameter in model.parameters())])
    assert len(calls) == 2, "one call a layer, of the marked model alone"
    for one, other in zip(*found, strict=True):
        assert apart(one, other) < 2e-2
    model(input_ids=ids, use_cache=False)
    assert len(calls) == 2, "no packs, no tiles"
