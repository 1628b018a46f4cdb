"""A compiled layer under DDP stays one graph: torch would cut it where DDP's buckets end. Real DDP, of one gloo rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_runs import model_of
from torch import distributed
from torch._dynamo import config
from torch.nn.parallel import DistributedDataParallel

from dumbo.patch import compile as patch
from dumbo.patch.compile import Compile


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
    monkeypatch.setattr(patch, "with_settings", lambda compiled, name: compiled)
    cut, others = graphs_and_gradients(monkeypatch)
    assert cut > 1, "the test sees it when torch cuts a layer"
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], atol=1e-6), name
