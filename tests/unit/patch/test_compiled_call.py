"""What is around a compiled layer's graph: inputs are alike, so that layers share one graph; nothing frozen is passed back through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import documents, model_of, small_run, splits_of

from dumbo.errors import MemoryFull
from dumbo.patch.compile import Compile, as_written, decoder_layers
from dumbo.patch.freeze import Freeze
from dumbo.patch.fused_lora import FusedLoRA
from dumbo.patch.gradient_checkpointing import GradientCheckpointing
from dumbo.patch.lora import LoRA

IDS = torch.arange(24)[None] % 97


def adapted(model: Any) -> Any:
    return FusedLoRA().apply(LoRA(rank=4, init="gaussian").apply(model))


@pytest.fixture
def graphs() -> Any:
    torch.compiler.reset()
    yield []
    torch.compiler.reset()


def counting(graphs: list[bool]) -> Any:
    def counted(graph: Any, inputs: list[Any]) -> Any:
        graphs.append(torch.is_grad_enabled())
        return graph.forward

    return counted


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
def test_layers_behind_frozen_embeddings_share_one_graph(checkpointed: bool, graphs: list[bool]) -> None:
    """Three layers with adapters. In evaluation nothing is asked for a gradient, and there is one more graph."""
    model = adapted(model_of(num_hidden_layers=3))
    if checkpointed:
        model = GradientCheckpointing().apply(model)
    model = Compile(backend=counting(graphs)).apply(model).train()
    found = gradients(model)
    assert graphs == [True]
    with as_written(model):
        wanted = gradients(model)
    assert found.keys() == wanted.keys()
    assert all(".lora_" in name for name in found)
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name
    with torch.no_grad():
        assert not model.eval()(input_ids=IDS).logits.requires_grad
    assert graphs == [True, False]


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
def test_nothing_is_passed_back_through_frozen_layers(checkpointed: bool, graphs: list[bool]) -> None:
    """Adapters of the last two of four layers train: those are one kind of layer, whose input has a gradient; the others' has none,
    though transformers asks one of a checkpointed model's embeddings. Layers that train go forward once more then.
    """
    model = adapted(model_of(num_hidden_layers=4))
    if checkpointed:
        model = GradientCheckpointing().apply(model)
    for layer in decoder_layers(model)[:2]:
        layer.requires_grad_(False)
    inputs: list[torch.Tensor] = []
    backend = counting(graphs)

    def watched(graph: Any, example: list[Any]) -> Any:
        run = backend(graph, example)

        def called(*given: Any) -> Any:
            inputs.extend(one for one in given if isinstance(one, torch.Tensor) and one.shape == (1, 24, 32))
            return run(*given)

        return called

    found = gradients(Compile(backend=watched).apply(model).train())
    assert graphs == [True, True], "one of frozen layers, one of those that train"
    assert [one.requires_grad for one in inputs] == [False, False, True, True] + [True, True] * checkpointed
    assert {name.split("layers.")[1][0] for name in found} == {"2", "3"}


def test_what_trains_before_the_layers_keeps_its_gradient(graphs: list[bool]) -> None:
    """Frozen layers behind something that trains are passed back through: an embedding, say."""
    model = Freeze(train=["embed_tokens"]).apply(model_of(num_hidden_layers=3))
    with as_written(model):
        wanted = gradients(model)
    found = gradients(Compile(backend=counting(graphs)).apply(model).train())
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name


def test_proofs_and_training_share_their_graphs(data: Path, tmp_path: Path, graphs: list[bool]) -> None:
    """A run with adapters, proven first: packs are probed in the graphs that train. Those of evaluation come with the first
    held-out loss. On a CPU attention to packs cuts a layer in four.
    """
    rows = documents(data, 20, longest=100)
    model = Compile(backend=counting(graphs)).apply(adapted(model_of(num_hidden_layers=3)))
    splits = splits_of(tmp_path, rows, rows[:4])
    run = small_run(tmp_path / "run", splits, model=model, max_steps=3, eval_every=3, verify=True)
    assert "pack leak 0 (isolated attention)" in run.said
    assert graphs == [True] * 4 + [False] * 4


def test_packs_are_probed_without_dropout(data: Path, tmp_path: Path, graphs: list[bool]) -> None:
    """In training mode adapters' dropout would make two passes differ, and packs would seem to leak."""
    rows = documents(data, 20, longest=100)
    model = LoRA(rank=4, dropout=0.3, init="random").apply(model_of())
    model = Compile(backend=counting(graphs)).apply(model)
    run = small_run(tmp_path / "run", splits_of(tmp_path, rows), model=model, max_steps=2, verify=True)
    assert "pack leak 0 (isolated attention)" in run.said
    assert graphs[0], "packs went through a graph with gradients"


@pytest.mark.parametrize("verify", [True, False], ids=["proven", "not proven"])
def test_a_probe_without_room_leaves_the_halving_to_the_batches(
    verify: bool, data: Path, tmp_path: Path, graphs: list[bool]
) -> None:
    """Above 512 tokens the memory runs out wherever gradients are kept. Packs are probed without, and batches are halved."""

    def small(graph: Any, inputs: list[Any]) -> Any:
        def called(*given: Any) -> Any:
            tokens = max((one.shape[1] for one in given if isinstance(one, torch.Tensor) and one.dim() == 3), default=0)
            if torch.is_grad_enabled() and tokens > 512:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return graph.forward(*given)

        return called

    rows = documents(data, 20, longest=100)
    model = Compile(backend=small).apply(model_of())
    options: dict[str, Any] = {"model": model, "max_steps": 2, "cuda_graphs": False, "verify": verify}
    if verify:  # a process of its own would begin anew with half of it
        with pytest.raises(MemoryFull, match="Tried to allocate"):
            small_run(tmp_path / "run", splits_of(tmp_path, rows), **options)
    else:
        run = small_run(tmp_path / "run", splits_of(tmp_path, rows), **options)
        assert [(one["step"], one["from"], one["to"]) for one in run.facts["memory_halvings"]] == [(1, 4, 2)]
