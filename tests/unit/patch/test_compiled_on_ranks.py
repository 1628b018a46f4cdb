"""What stands around compiled parts: a layer under DDP stays one graph, FSDP2 is around layers and head. Real ones, of one gloo rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_runs import model_of
from torch import distributed
from torch._dynamo import config
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from dumbo.patch import compiled_call
from dumbo.patch.chunked_loss import ChunkedLoss
from dumbo.patch.compile import Compile, decoder_layers
from dumbo.patch.fused_lora import FusedLoRA
from dumbo.patch.gradient_checkpointing import GradientCheckpointing
from dumbo.patch.lora import LoRA
from dumbo.patch.modules import base_of


@pytest.fixture
def one_rank() -> Iterator[None]:
    torch.compiler.reset()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
    torch.compiler.reset()


def graphs_and_gradients(monkeypatch: Any) -> tuple[int, dict[str, torch.Tensor]]:
    """How many graphs a step of two compiled layers takes, and the gradients, in buckets smaller than a layer."""
    graphs: list[Any] = []

    def counted(graph: Any, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model = Compile(backend=counted).apply(model_of(hidden_size=256, intermediate_size=1024))  # type: ignore[arg-type]
    ddp = DistributedDataParallel(model, bucket_cap_mb=1)
    ids = torch.arange(16)[None]
    ddp(input_ids=ids, labels=ids).loss.backward()
    return len(graphs), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_one_graph_where_torch_would_make_several(one_rank: None, monkeypatch: Any) -> None:
    whole, gradients = graphs_and_gradients(monkeypatch)
    assert whole == 1, "two layers of one kind share it"
    assert config.optimize_ddp is True, "what else is compiled keeps to torch's ways"
    monkeypatch.setattr(compiled_call, "with_settings", lambda compiled, layer, as_written: compiled)
    cut, others = graphs_and_gradients(monkeypatch)
    assert cut > 1, "the test sees it when torch cuts a layer"
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], atol=1e-6), name


def test_checkpointed_around_the_graph_under_fsdp2(one_rank: None) -> None:
    """Real FSDP2: gradients of the model as written; what a layer keeps is its input, though its pass is done once more."""
    ids = torch.arange(64)[None]
    found = []
    for sharded in (False, True):
        torch.manual_seed(0)
        model = FusedLoRA().apply(LoRA(rank=4, init="gaussian").apply(model_of(hidden_size=64, intermediate_size=256)))
        kept = []
        if sharded:
            model = Compile(backend="aot_eager").apply(GradientCheckpointing().apply(model))
            for layer in decoder_layers(model):
                fully_shard(layer)
            fully_shard(model)
        model.train()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: (kept.append(tensor), tensor)[1], lambda tensor: tensor
        ):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        whole = {name: getattr(grad, "full_tensor", lambda grad=grad: grad)() for name, grad in gradients.items()}
        wide = sum(tensor.shape[-1] == 256 and tensor.shape[-2] == 64 for tensor in kept if tensor.ndim > 1)
        found.append((float(loss.detach()), whole, wide))
    (loss, gradients, wide), (other, others, still) = found
    assert other == pytest.approx(loss, abs=1e-6)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-6, rtol=1e-5)
    assert (wide > 0, still) == (True, 0), "products inside of the MLP"


HEADS = {
    "full": lambda model: model,
    "lora": lambda model: LoRA(rank=4, init="gaussian", target_modules=["q_proj"]).apply(model),
    "lora on the head": lambda model: LoRA(rank=4, init="random", target_modules=["q_proj", "lm_head"]).apply(model),
    "fused lora on the head": lambda model: FusedLoRA().apply(HEADS["lora on the head"](model)),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("adapters", HEADS)
def test_a_sharded_head_with_its_loss_in_chunks(one_rank: None, adapters: str, tied: bool, monkeypatch: Any) -> None:
    """Real FSDP2, grouped as accelerate does it, chunks compiled: loss and gradients of the model as written, each of two
    accumulated passes of two steps."""
    compile_ = torch.compile
    monkeypatch.setattr(Compile, "unavailable", lambda self: None)
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend="aot_eager"))
    ids = torch.arange(128).reshape(2, 64)
    asked = {"input_ids": ids, "labels": ids, "use_cache": False, "num_items_in_batch": torch.tensor(100)}
    models = []
    for change in (lambda model: model, ChunkedLoss(chunk_size=50, kernel=False).apply):
        torch.manual_seed(0)
        models.append(HEADS[adapters](change(model_of(tie_word_embeddings=tied))))
    plain, model = models
    base = base_of(model)
    put_there = vars(base.lm_head).get("forward")
    for layer in base.model.layers:
        fully_shard(layer)
    if not tied:
        fully_shard(base.model.embed_tokens)
    tail = [base.model.norm, *([base.model.embed_tokens] if tied else []), base.get_output_embeddings()]
    fully_shard(tail, reshard_after_forward=False)
    fully_shard(model)
    for _ in range(2):
        plain.zero_grad()
        model.zero_grad()
        for _ in range(2):
            wanted, found = plain(**asked).loss, model(**asked, skip_logits=True).loss
            assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
            wanted.backward()
            found.backward()
        gradients = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
        theirs = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}
        assert theirs.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert (theirs[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name
    with torch.no_grad():
        assert float(model(**asked, skip_logits=True).loss) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert vars(base.lm_head).get("forward") is put_there
