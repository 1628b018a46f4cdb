"""Which documents of a pack are long, how a batch's are found again, and the numbers around cuDNN's attention.

cuDNN itself is on a GPU alone (tests/gpu/test_tiles_on_gpu.py): here its place is taken by attention as it is written down,
in float64, with the same arguments and results. It sees what lies past a document's end, as cuDNN does.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from attending import alone, apart

from dumbo.trainer import ahead, cudnn, graph_kinds, long_attention, long_documents, tiles
from dumbo.trainer.long_documents import LONG, Part


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 32 tokens on a document is long; cuDNN is written down."""
    monkeypatch.setattr(long_documents, "LONG", 32)
    monkeypatch.setattr(long_attention, "LONG", 32)
    monkeypatch.setattr(cudnn, "attend_rows", _attend)
    monkeypatch.setattr(cudnn, "attend_rows_backward", _attend_backward)
    monkeypatch.setattr(cudnn, "why_not", lambda *heads: None)


def _weights(q: torch.Tensor, k: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, heads, L, L) scores, -inf where a key comes later; (B, heads, L, 1) the logarithms of their sums."""
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(2, 3) * scale
    scores = scores.masked_fill(torch.ones(scores.shape[2:], dtype=torch.bool).triu(1), -torch.inf)
    return scores, scores.logsumexp(-1, keepdim=True)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    scores, sums = _weights(q, k, scale)
    out = (scores - sums).exp() @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    return out, sums.float()


def _attend_backward(*given: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By the sums that were kept, as flash attention does it: wrong ones give wrong gradients."""
    grad, q, k, v, out, lse, scale = given
    sharing = q.shape[1] // k.shape[1]
    weights = (_weights(q, k, scale)[0] - lse).exp()
    of_weights = grad @ v.repeat_interleave(sharing, 1).transpose(2, 3)
    of_scores = weights * (of_weights - (grad * out).sum(-1, keepdim=True)) * scale
    dk, dv = of_scores.transpose(2, 3) @ q, weights.transpose(2, 3) @ grad
    return (
        of_scores @ k.repeat_interleave(sharing, 1),
        dk.unflatten(1, (-1, sharing)).sum(2),
        dv.unflatten(1, (-1, sharing)).sum(2),
    )


@pytest.mark.parametrize(
    ("starts", "tokens"),
    [
        pytest.param([0, 32, 64, 96], 128, id="whole rows"),
        pytest.param([0, 45, 50, 83], 140, id="lengths that are rounded, short ones between, one at the end"),
        pytest.param([0, 32, 64, 101], 133, id="rows, one rounded, a row"),
        pytest.param([0, 40, 50], 83, id="one at the end, rounded past the axis"),
        pytest.param([0], 67, id="one that fills the axis"),
        pytest.param([0, 35], 70, id="rows of an odd length that fill it"),
    ],
)
def test_each_long_document_is_as_alone(small: None, starts: list[int], tokens: int) -> None:
    """Output and gradients, in float64 but for the kept sums, which are float32 (7 digits)."""
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(tokens, n, 8, dtype=torch.float64) for n in (4, 2, 2, 4))
    parts = long_documents.parts_of([*starts, tokens])
    kept = torch.full((4 * long_documents.room(tokens),), torch.nan)
    fills = long_documents.fills(parts, tokens)
    assert fills is (starts == [0] or tokens % starts[1] == 0)
    to = [None if fills else torch.full_like(tensor, 7.0) for tensor in (q, q, k, v)]
    out = long_attention.forward(q, k, v, parts, 8**-0.5, to[0], kept)
    found = long_attention.backward(q, k, v, out, kept, grad, parts, 8**-0.5, to[1:])
    assert all(tensor.is_contiguous() for tensor in (out, *found))

    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    wanted = alone(*leaves, starts)
    reference = [wanted, *torch.autograd.grad(wanted, leaves, grad)]
    long = torch.zeros(tokens, dtype=torch.bool)
    for part in parts:
        long[part.start : part.end] = True
    for one, other in zip((out, *found), reference, strict=True):
        assert apart(one[long], other[long]) < 1e-6
        assert (one[~long] == 7).all(), "what is short belongs to tiles"
    lengths = [end - start for start, end in zip(starts, [*starts[1:], tokens], strict=True)]
    assert int(long.sum()) == sum(length for length in lengths if length >= 32)


def test_documents_of_one_length_go_together_as_they_are(small: None) -> None:
    """A length that stands alone is rounded (at 32 tokens to even numbers), one that fills the axis is not."""
    assert long_documents.parts_of([0, 32, 64, 96, 99, 99, 132]) == [Part(0, 32, 3, 32), Part(99, 33, 1, 34)]
    assert long_documents.parts_of([0, 33, 66, 99]) == [Part(0, 33, 3, 33)]
    assert long_documents.parts_of([0, 33, 66, 66, 101]) == [Part(0, 33, 2, 33), Part(66, 35, 1, 36)]
    assert long_documents.parts_of([0, 35, 35]) == [Part(0, 35, 1, 35)]
    assert long_documents.parts_of([0, 31, 62, 62]) == []


def test_lengths_are_rounded_to_few_and_there_is_room_for_them() -> None:
    lengths = range(LONG, 5 * LONG)
    rounded = [long_documents.rounded(length) for length in lengths]
    assert all(length <= up <= length + length / 16 for length, up in zip(lengths, rounded, strict=True))
    assert len(set(rounded)) == 16 + 16 + 4 + 1
    for length in (LONG, LONG + 1, 5000, 5 * LONG - 1):
        assert 3 * long_documents.rounded(length) <= long_documents.room(3 * length)
    assert long_documents.room(LONG - 1) == 0


@pytest.fixture
def moved(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy passes for one on another device."""
    monkeypatch.setattr(long_documents, "_was_moved", lambda bounds, own: own is not bounds)


def _batch(numbers: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """As it was made, and moved."""
    bounds = torch.tensor(numbers, dtype=torch.int32)
    return {"cu_seq_lens_q": bounds}, {"cu_seq_lens_q": bounds.clone()}


def test_what_was_told_lasts_as_long_as_the_batch(moved: None) -> None:
    batch, there = _batch([0, 40, 50])
    assert long_documents.known(there["cu_seq_lens_q"]) == []
    long_documents.tell(batch, there)
    assert long_documents.known(there["cu_seq_lens_q"]) == [Part(0, 40, 1, 40)]
    assert long_documents.known(there["cu_seq_lens_q"][:2]) == [], "another tensor at the same place"
    assert long_documents.known(batch["cu_seq_lens_q"]) == []
    storage = there["cu_seq_lens_q"].untyped_storage()
    del there
    gc.collect()
    place = torch.tensor([], dtype=torch.int32).set_(storage)
    assert len(place) == 3
    assert long_documents.known(place) == [], "the batch is gone: whatever lies there is another"
    long_documents.tell(*_batch([0, 9]))
    assert len(long_documents._told) <= 1, "what is gone is forgotten"


def test_two_batches_at_once_are_told_apart(moved: None) -> None:
    """With accumulation all micro batches of a step are on the device."""
    batches = [_batch([0, 40, 50]), _batch([0, 10, 50]), _batch([0, 5, 50])]
    for batch, there in batches:
        long_documents.tell(batch, there)
    assert [long_documents.known(there["cu_seq_lens_q"]) for _, there in batches] == [
        [Part(0, 40, 1, 40)],
        [Part(10, 40, 1, 40)],
        [Part(5, 45, 1, 46)],
    ]


def test_layers_that_are_computed_again_find_them_too(moved: None) -> None:
    """In the backward pass, when whoever moved the batch has let go of it."""
    batch, there = _batch([0, 40, 50])
    long_documents.tell(batch, there)
    seen = []

    def layer(x: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        seen.append(long_documents.known(bounds))
        return x * x

    x = torch.ones(3, requires_grad=True)
    out = torch.utils.checkpoint.checkpoint(layer, x, there["cu_seq_lens_q"], use_reentrant=False)
    del there
    gc.collect()
    out.sum().backward()
    assert seen == [[Part(0, 40, 1, 40)]] * 2


def test_only_what_was_moved_is_told_of(small: None) -> None:
    batch, there = _batch([0, 40, 50])
    long_documents.tell(batch, there)
    long_documents.tell({"input_ids": torch.zeros(1)}, {"input_ids": torch.zeros(1)})
    assert long_documents.known(there["cu_seq_lens_q"]) == []


def test_which_go_through_cudnn(moved: None, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, there = _batch([0, 40, 50])
    long_documents.tell(batch, there)
    bounds = there["cu_seq_lens_q"]
    q, k = torch.zeros(50, 4, 8), torch.zeros(50, 2, 8)
    assert long_attention.parts_for(q, k, bounds, 0) == [Part(0, 40, 1, 40)]
    assert long_attention.parts_for(q, k, bounds, 16) == [], "a sliding window"
    torch.use_deterministic_algorithms(True)
    try:
        assert long_attention.parts_for(q, k, bounds, 0) == []
        assert cudnn.lacking() == "its gradients are not the same bits each time"
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(cudnn, "why_not", lambda *heads: "no plan")
    assert long_attention.parts_for(q, k, bounds, 0) == []


def test_graphs_are_for_rows_that_fill_the_batch(moved: None) -> None:
    """Rows of 5,000 and of 7,500 tokens fill 15,000 both: where they lie is read while launching, and a graph has it in it.
    Documents that lie anywhere go through tiles, so that they come in no more kinds than before."""
    keys = []
    for numbers in ([0, 50, 100, 150], [0, 75, 150], [0, 50, 100, 150], [0, 40, 150], [0, 60, 150]):
        numbers = [*numbers, *[150] * (4 - len(numbers))]
        batch, there = _batch(numbers)
        long_documents.tell(batch, there)
        bounds = there["cu_seq_lens_q"]
        parts = long_documents.known(bounds)
        inputs = {"cu_seq_lens_q": bounds, "input_ids": torch.zeros(1, 150), "max_length_q": 150}
        assert graph_kinds.has_long(inputs)
        rows = graph_kinds.rows_of(inputs)
        assert rows == long_documents.known(bounds) == (parts if len(parts) == 1 and parts[0].end == 150 else [])
        assert graph_kinds.has_long(inputs) is bool(rows)
        copies = graph_kinds.copies_of(inputs)
        assert long_documents.known(copies["cu_seq_lens_q"]) == rows
        keys.append(graph_kinds.key_of(inputs, rows))
    assert keys[0] == keys[2]
    assert keys[3] == keys[4]
    assert len({keys[0], keys[1], keys[3]}) == 3


def test_whoever_moves_a_batch_tells_of_its_documents(moved: None) -> None:
    """A batch ahead of training."""
    batch, _ = _batch([0, 40, 50])
    there = ahead.moved(batch, torch.device("meta"))
    assert long_documents.known(there["cu_seq_lens_q"]) == [Part(0, 40, 1, 40)]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if this machine had cuDNN; what it computes is written down."""
    device = torch.device
    monkeypatch.setattr(cudnn, "_lacking_here", lambda: None)
    monkeypatch.setattr(cudnn, "attend_rows", _attend)
    monkeypatch.setattr(cudnn, "attend_rows_backward", _attend_backward)
    monkeypatch.setattr(cudnn, "TRIED", 60)
    monkeypatch.setattr(torch, "device", lambda kind, index=0: device("cpu"))
    cudnn.why_not.cache_clear()
    yield
    cudnn.why_not.cache_clear()


def test_the_trial_lets_right_numbers_pass_inside_an_operator_too(here: None) -> None:
    with torch._C._AutoDispatchBelowAutograd():
        assert cudnn.why_not(4, 2, 8, torch.float32, 0) is None


@pytest.mark.parametrize("wrong", [1.1, float("nan")])
def test_the_trial_finds_wrong_gradients(wrong: float, here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*given: Any) -> Any:
        dq, dk, dv = _attend_backward(*given)
        return dq, dk, dv * wrong

    monkeypatch.setattr(cudnn, "attend_rows_backward", off)
    with pytest.warns(UserWarning, match=f"long documents go through tiles: cuDNN's attention is {wrong - 1:.1g} from"):
        assert "from that in float32" in str(cudnn.why_not(4, 2, 8, torch.float32, 0))


def test_the_trial_says_what_cudnn_says(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: Any) -> Any:
        raise RuntimeError("No valid execution plans built.\nmore")

    monkeypatch.setattr(cudnn, "attend_rows", refused)
    with pytest.warns(UserWarning, match="No valid execution plans"):
        assert cudnn.why_not(4, 2, 8, torch.float32, 0) == "cuDNN: No valid execution plans built."


def test_memory_that_runs_out_in_the_trial_says_nothing_about_cudnn(
    here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as once:
        once.setattr(cudnn, "attend_rows", full)
        with pytest.raises(torch.OutOfMemoryError):
            cudnn.why_not(4, 2, 8, torch.float32, 0)
    assert cudnn.why_not(4, 2, 8, torch.float32, 0) is None


@pytest.mark.parametrize("autocast", [False, True])
def test_what_the_trial_is_held_against(autocast: bool) -> None:
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(1, n, 50, 8) for n in (4, 2, 2, 4))
    leaves = [tensor[0].transpose(0, 1).double().requires_grad_() for tensor in (q, k, v)]
    wanted = alone(*leaves, [0])
    reference = [wanted, *torch.autograd.grad(wanted, leaves, grad[0].transpose(0, 1).double())]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = cudnn._written_down(q, k, v, grad, 8**-0.5)
    for one, other in zip(found, reference, strict=True):
        assert apart(one[0].transpose(0, 1), other) < 1e-5


def test_an_operators_name_changes_with_what_it_takes_and_returns() -> None:
    """torch's caches of compiled graphs outlive a process and know an operator by its name: a graph of another version's
    would call this one with its arguments. Whoever changes one of these, or the gradients, raises the number in the name."""
    schemas = {str(operator._opoverload._schema) for operator in (tiles.tile_attention, tiles.tile_attention_backward)}
    assert schemas == {
        "dumbo::tile_attention_2(Tensor q, Tensor k, Tensor v, Tensor bounds, SymInt window, float scale)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        "dumbo::tile_attention_2_backward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor documents,"
        " Tensor kept, Tensor listed, Tensor grad, SymInt window, float scale) -> (Tensor, Tensor, Tensor)",
    }


def test_no_gpu_no_cudnn() -> None:
    if not torch.cuda.is_available():
        assert cudnn.lacking() == "no CUDA device"
        assert cudnn.why_not(4, 2, 64, torch.bfloat16, 0) == "no CUDA device"


def test_torchs_operators_are_as_they_are_called() -> None:
    """Their arguments, in torch's own words: they may change with it."""
    forward = torch.ops.aten._scaled_dot_product_cudnn_attention.default._schema
    backward = torch.ops.aten._scaled_dot_product_cudnn_attention_backward.default._schema
    names = [argument.name for argument in forward.arguments]
    assert names == ["query", "key", "value", "attn_bias", "compute_log_sumexp", "dropout_p", "is_causal",
                     "return_debug_mask", "scale"]  # fmt: skip
    assert [one.name for one in forward.returns][:2] == ["output", "logsumexp"]
    names = [argument.name for argument in backward.arguments]
    assert names == ["grad_out", "query", "key", "value", "out", "logsumexp", "philox_seed", "philox_offset", "attn_bias",
                     "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal", "scale"]  # fmt: skip
