"""What compiled layers keep, against what torch's own compiled layers save for their backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from small_runs import model_of
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from dumbo.patch.chunked_loss import ChunkedLoss
from dumbo.patch.compile import Compile, decoder_layers
from dumbo.patch.fused_lora import FusedLoRA
from dumbo.patch.lora import LoRA
from dumbo.plan.fused import fused_chunk_loss, keep_as_compiled
from dumbo.plan.ledger import Ledger
from dumbo.plan.memory import predict
from dumbo.plan.stand_in import make_fake

TOKENS, WIDTH, INNER, VOCABULARY = 64, 32, 96, 512


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def layer_of(patches: str) -> Any:
    """(layer, its input, the further arguments) of a small Llama in bf16."""
    model = model_of(hidden_size=WIDTH, intermediate_size=INNER, attn_implementation="sdpa").bfloat16()
    if "lora" in patches:
        model = LoRA(rank=2, target_modules="all-linear").apply(model)
    if "fused" in patches:
        model = FusedLoRA().apply(model)
    layer = decoder_layers(model)[0].bfloat16().train()
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    angles = torch.randn(1, TOKENS, 8, dtype=torch.bfloat16)
    return layer, x, {"position_embeddings": (angles.cos(), angles.sin()), "attention_mask": None}


def saved_by(layer: Any, x: torch.Tensor, more: dict[str, Any]) -> int:
    """Bytes that a layer saves which torch compiles with the same partition of its graph; of its weights none."""
    found: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    layer.compile(backend="aot_eager_decomp_partition")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept.append(layer(x, **more))
    for tensor in (x, *more["position_embeddings"]):  # there in any case
        found.pop(tensor.untyped_storage().data_ptr(), None)
    found[kept[0].untyped_storage().data_ptr()] = kept[0].untyped_storage().nbytes()
    layer._compiled_call_impl = None
    torch.compiler.reset()
    return sum(found.values())


@pytest.mark.parametrize(
    "patches", [*(pytest.param(name, marks=pytest.mark.full) for name in ("full", "lora")), "lora, fused"]
)
def test_what_is_kept_is_what_torch_saves(patches: str) -> None:
    layer, x, more = layer_of(patches)
    wanted = saved_by(layer, x, more)
    keep_as_compiled(layer)
    with Ledger() as ledger:
        for tensor in (*layer.parameters(), *layer.buffers(), x, *more["position_embeddings"]):
            tensor.view_as(tensor)  # known from here on, as weights
        with ledger.making("activations"):
            out = layer(x, **more)
        found = ledger.held["activations"]
        out.sum().backward()
    assert found == pytest.approx(wanted, rel=0.02)
    assert found >= 2 * TOKENS * (3 * INNER + 4 * WIDTH), "both inner products and their product, and some of the width"


@pytest.mark.full
def test_adapters_add_little() -> None:
    """A layer with LoRA keeps sums of a product and its update, not both."""
    kept = [saved_by(*layer_of(patches)) for patches in ("full", "lora")]
    assert kept[1] < kept[0] + 2 * TOKENS * WIDTH


def test_what_is_computed_number_by_number_is_never_there() -> None:
    """Norms, rotary embedding and activation of a backward pass: beside what is kept, few tensors at once."""
    layer, x, more = layer_of("full")
    peaks = []
    for change in (lambda layer: None, keep_as_compiled):
        change(layer)
        layer(x, **more).sum().backward()  # compiled, where it is
        layer.zero_grad()
        x.grad = None
        with Ledger() as ledger:
            for tensor in (*layer.parameters(), x):
                tensor.view_as(tensor)
            with ledger.making("activations"):
                out = layer(x, **more)
            with ledger.making("backward"):
                out.sum().backward()
        peaks.append(ledger.peak)
        layer.zero_grad()
        x.grad = None
    assert peaks[1] < 0.8 * peaks[0]


def test_a_checkpointed_layer_is_computed_again_as_compiled() -> None:
    """It keeps its input alone, and in the backward pass holds less at once than the layer as written, computed again."""
    layer, x, more = layer_of("lora, fused")
    layer.gradient_checkpointing = True
    layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    kept, peaks = [], []
    for change in (lambda layer: None, keep_as_compiled):
        change(layer)
        layer(x, **more).sum().backward()  # compiled, where it is
        with Ledger() as ledger:
            for tensor in (*layer.parameters(), x, *more["position_embeddings"]):
                tensor.view_as(tensor)
            with ledger.making("activations"):
                out = layer(x, **more)
            kept.append(ledger.held["activations"])
            with ledger.making("backward"):
                out.sum().backward()
        peaks.append(ledger.peak)
    assert kept[0] - 64 <= kept[1] <= kept[0] < 2 * out.nbytes, "what it returns, and a random state"
    assert peaks[1] < 0.9 * peaks[0]


@pytest.mark.full
def test_gradients_are_those_of_the_layer() -> None:
    layer, x, more = layer_of("lora, fused")
    layer = layer.float()
    x = x.detach().float().requires_grad_()
    more["position_embeddings"] = tuple(tensor.float() for tensor in more["position_embeddings"])
    trained = [p for p in layer.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(layer(x, **more).square().sum(), [x, *trained])
    keep_as_compiled(layer)
    found = torch.autograd.grad(layer(x, **more).square().sum(), [x, *trained])
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_layer_with_a_constant_of_its_own_is_rehearsed() -> None:
    """As GPT-Neo's attention has one, which is in the backward graph too."""

    class Layer(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return torch.where(y > 0, y, torch.tensor(-1.0, dtype=y.dtype)) * torch.tensor(2.0)

    layer: Any = Layer(8, 8)
    keep_as_compiled(layer)
    with FakeTensorMode() as mode, Ledger():
        make_fake(layer, torch.device("cpu"))
        layer(mode.from_tensor(torch.zeros(4, 8))).sum().backward()
    assert layer.weight.grad.shape == (8, 8)


def test_a_chunk_of_the_loss_has_its_logits_once() -> None:
    head = torch.nn.Linear(8, 1000, bias=False).bfloat16()
    hidden = torch.zeros(10, 8, dtype=torch.bfloat16, requires_grad=True)
    with Ledger() as ledger:
        fused_chunk_loss(head, None, hidden, torch.zeros(10, dtype=torch.long)).backward()
    logits, weights = 2 * 10 * 1000, 2 * 8 * 1000
    assert logits <= ledger.peak <= logits + 3 * weights


def test_a_plan_says_what_is_going_to_do_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    from dumbo.plan.stand_in import _rehearsed

    monkeypatch.setattr(Compile, "unavailable", lambda self: None)
    said = [_rehearsed(patch, model_of())[1] for patch in (ChunkedLoss(), ChunkedLoss(kernel=False))]
    assert [text.rpartition(", ")[2] for text in said] == ["in a kernel of our own", "compiled"]


def test_a_speed_of_before_a_key_is_still_of_the_same_shape() -> None:
    from dumbo.plan.speed import _shape

    before = {"patch": {"chunked_loss": {"chunk_size": None}}}
    now = {"patch": {"chunked_loss": {"chunk_size": None, "kernel": False}}}
    assert _shape(before) == _shape(now)
    now["patch"]["chunked_loss"]["kernel"] = True
    assert _shape(before) != _shape(now)


@pytest.mark.parametrize(
    "patches",
    [
        *(pytest.param(name, marks=pytest.mark.full) for name in ("compile", "compile,chunked_loss")),
        "lora,fused_lora,compile,chunked_loss",
    ],
)
def test_a_plan_of_what_a_gpu_compiles(
    patches: str, experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the layers go through torch.compile on fake tensors, with a group of documents' attention outside."""
    words = (
        f"patch=[{patches}]",
        "trainer.global_batch_size=16",
        "trainer.micro_batch_size=16",
        "trainer.max_seq_len=256",
    )
    plugins, tokenizer, data = experiment(*words)
    as_written = predict(plugins, tokenizer, data, plugins.trainer.batch(1))
    monkeypatch.setattr(Compile, "unavailable", lambda self: None)
    compiled = predict(plugins, tokenizer, data, plugins.trainer.batch(1))
    assert compiled.parts["activations"] < 0.97 * as_written.parts["activations"]
    assert compiled.held == as_written.held
    assert ChunkedLoss().compiled
