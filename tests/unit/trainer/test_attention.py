"""`isolated` attention on packed documents against each document alone in the model's own eager attention."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import model_of

from dumbo.trainer import attention
from dumbo.trainer.collate import Collate

WINDOW = 8
LENGTHS = (31, 3, 17, 1, 30, 16, 9, 2, 31)
COMMON = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "attn_implementation": "eager",
    "initializer_range": 0.3, "use_cache": False,
}  # fmt: skip


def _model(name: str) -> Any:
    import transformers as t

    torch.manual_seed(1)
    if name == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**COMMON))
    if name == "mistral":
        return t.MistralForCausalLM(t.MistralConfig(**COMMON, sliding_window=WINDOW))
    if name == "qwen3":
        return t.Qwen3ForCausalLM(t.Qwen3Config(**COMMON))
    layers = ["sliding_attention", "full_attention"]
    return t.Gemma3ForCausalLM(t.Gemma3TextConfig(**COMMON, layer_types=layers, sliding_window=WINDOW))


class Rows:
    """What Collate needs of a store."""

    def __init__(self, lengths: tuple[int, ...], seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self._ids = [generator.integers(0, 97, length) for length in lengths]
        self._trained = [generator.random(length) < 0.6 for length in lengths]
        for trained in self._trained:
            trained[0] = False
        self.lengths = np.array(lengths)

    def ids(self, row: int) -> np.ndarray:
        return self._ids[row]

    def labels(self, row: int) -> np.ndarray:
        return np.where(self._trained[row], self._ids[row], -100)

    def packed(self) -> dict[str, Any]:
        rows: Any = self
        batch = Collate(rows, "tokens", 0)([np.arange(len(self.lengths))])
        del batch["documents"]
        return batch


def alone(model: Any, rows: Rows) -> tuple[float, dict[str, torch.Tensor]]:
    """Summed loss and gradients, each document by itself, its cross-entropy computed here."""
    model.zero_grad()
    total = 0.0
    for row in range(len(rows.lengths)):
        ids, labels = torch.from_numpy(rows.ids(row))[None], torch.from_numpy(rows.labels(row))
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
        wanted = torch.nonzero(labels[1:] != -100).flatten()
        loss = -torch.log_softmax(logits, -1)[wanted, labels[1:][wanted]].sum()
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def packed(model: Any, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch, num_items_in_batch=torch.tensor(1)).loss
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def isolated(model: Any) -> Any:
    attention.register()
    model.set_attn_implementation(attention.NAME)
    return model


def assert_close(ours: Any, theirs: Any, rel: float) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=rel)
    assert ours[1].keys() == theirs[1].keys()
    for name, grad in theirs[1].items():
        assert (ours[1][name] - grad).abs().max() <= 10 * rel * grad.abs().max() + 1e-6, name


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma3"])
def test_loss_and_gradients_are_those_of_each_document_alone(name: str) -> None:
    model, rows = _model(name), Rows(LENGTHS)
    wanted = alone(model, rows)
    assert_close(packed(isolated(model), rows.packed()), wanted, rel=2e-5)


def test_the_window_matters_in_these_documents() -> None:
    """Without its window Mistral gives another loss: the test above would notice a window that is left out."""
    narrow, rows = _model("mistral"), Rows(LENGTHS)
    wide = _model("mistral")
    wide.config.sliding_window = None
    for layer in wide.model.layers:
        layer.self_attn.sliding_window = None
    wide.load_state_dict(narrow.state_dict())
    with_window, without = packed(isolated(narrow), rows.packed()), packed(isolated(wide), rows.packed())
    assert abs(with_window[0] - without[0]) > 0.1


def test_gradient_checkpointing_recomputes_with_the_right_documents() -> None:
    """Two batches go forward before the first goes backward: each recomputation must take its own boundaries."""
    model, first, second = _model("llama"), Rows(LENGTHS), Rows((5, 40, 5, 44), seed=2)
    wanted_first, wanted_second = alone(model, first), alone(model, second)
    isolated(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    one, two = first.packed(), second.packed()
    model.zero_grad()
    losses = [model(**batch, num_items_in_batch=torch.tensor(1)).loss for batch in (one, two)]
    sum(losses).backward()
    assert float(losses[0].detach()) == pytest.approx(wanted_first[0], rel=2e-5)
    assert float(losses[1].detach()) == pytest.approx(wanted_second[0], rel=2e-5)
    for parameter, p in model.named_parameters():
        both = wanted_first[1][parameter] + wanted_second[1][parameter]
        assert (p.grad - both).abs().max() <= 2e-4 * both.abs().max() + 1e-6, parameter


def test_plans_are_never_those_of_another_batch() -> None:
    """Batches of other boundaries and the same size, one after the other and freed: addresses come again, plans not."""
    model = isolated(_model("llama"))
    splits = [(20, 20), (10, 30), (30, 10), (39, 1), (1, 39), (13, 27), (27, 13), (40,)]
    wanted = [alone(model, Rows(split, seed=3))[0] for split in splits]
    addresses = set()
    for _ in range(3):
        for split, expected in zip(splits, wanted, strict=True):
            batch = Rows(split, seed=3).packed()
            addresses.add(id(batch["cu_seq_lens_q"]))
            assert packed(model, batch)[0] == pytest.approx(expected, rel=2e-5)
            del batch
            gc.collect()
    assert len(addresses) < 24, "no address came again: the test shows nothing"


def test_two_models_evaluation_and_generation_between_training_steps() -> None:
    first, second = isolated(_model("llama")), isolated(_model("qwen3"))
    rows, others = Rows(LENGTHS), Rows((12, 7, 22), seed=5)
    wanted = alone(first, rows)
    batch, other = rows.packed(), others.packed()
    loss = first(**batch, num_items_in_batch=torch.tensor(1)).loss
    with torch.no_grad():
        expected = alone_loss(second, others)
        assert float(second(**other, num_items_in_batch=torch.tensor(1)).loss) == pytest.approx(expected, rel=2e-5)
        first.generate(input_ids=torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    first.zero_grad()
    loss.backward()
    grads = {name: p.grad.clone() for name, p in first.named_parameters()}
    assert_close((float(loss.detach()), grads), wanted, rel=2e-5)
    assert_close(packed(first, batch), wanted, rel=2e-5)


def alone_loss(model: Any, rows: Rows) -> float:
    with torch.enable_grad():
        return alone(model, rows)[0]


def test_generation_with_padding_is_that_of_sdpa() -> None:
    """Left-padded prompts in a batch: the model with `isolated` answers as with torch's own attention."""
    model = _model("llama")
    ids = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    kwargs = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "use_cache": True}
    model.set_attn_implementation("sdpa")
    wanted = model.generate(input_ids=ids, attention_mask=mask, **kwargs)
    assert torch.equal(isolated(model).generate(input_ids=ids, attention_mask=mask, **kwargs), wanted)


def test_bfloat16() -> None:
    model, rows = _model("llama").bfloat16(), Rows(LENGTHS)
    wanted = alone(model, rows)
    assert_close(packed(isolated(model), rows.packed()), wanted, rel=2e-2)
    assert sum(getattr(module, attention.GROUPED, False) for module in model.modules()) == 2, (
        "layers that no kernel took"
    )


def test_float32_leaves_no_word_that_kernels_could_not() -> None:
    model = isolated(_model("llama"))
    packed(model, Rows(LENGTHS).packed())
    assert not any(getattr(module, attention.GROUPED, False) for module in model.modules())


def test_padding_does_not_reach_the_gradients() -> None:
    """Of a group's padded places nothing counts: compared with documents attended to one by one (no padding)."""
    torch.manual_seed(0)
    bounds = torch.tensor([0, 20, 38, 55, 56, 60], dtype=torch.int32)
    tensors = [torch.randn(1, 4, 60, 8, requires_grad=True) for _ in range(3)]
    module: Any = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 1
    weights = torch.randn(1, 60, 4, 8)
    out, _ = attention.isolated_attention(module, *tensors, None, cu_seq_lens_q=bounds, scaling=8**-0.5)
    (out * weights).sum().backward()
    grads = [tensor.grad.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    parts = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        q, k, v = (tensor[:, :, start:end] for tensor in tensors)
        scores = (q @ k.transpose(-1, -2)) * 8**-0.5
        hidden = torch.ones(end - start, end - start).triu(1).bool()
        parts.append((torch.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ v).transpose(1, 2))
    plain = torch.cat(parts, 1)
    (plain * weights).sum().backward()
    assert torch.allclose(out, plain, atol=1e-6)
    for grad, tensor in zip(grads, tensors, strict=True):
        assert torch.allclose(grad, tensor.grad, atol=1e-5)
    shapes = attention.plan_of(bounds.tolist(), torch.device("cpu")).shapes
    assert any(documents > 1 for documents, _ in shapes), "nothing was grouped"
    assert sum(documents * length for documents, length in shapes) > 60, "nothing was padded"


def test_what_sdpa_would_leave_out_is_refused() -> None:
    module, tensor = torch.nn.Module(), torch.zeros(1, 1, 4, 8)
    with pytest.raises(attention.CannotIsolate, match="softcap"):
        attention.isolated_attention(module, tensor, tensor, tensor, None, softcap=50.0)


def test_the_fixture_model_uses_grouped_queries() -> None:
    assert model_of().config.num_key_value_heads < model_of().config.num_attention_heads
